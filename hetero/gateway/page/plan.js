// Who does what where, and what was foreseen of it.
const GIB = 2 ** 30;

export async function showPlan(box) {
  const answer = await fetch("plan");
  if (!answer.ok) return;
  const plan = await answer.json(), list = document.createElement("dl");
  const entry = (name, text) => {
    const [term, told] = ["dt", "dd"].map(kind => document.createElement(kind));
    term.textContent = name;
    told.textContent = text;
    list.append(term, told);
  };
  entry("strategy", plan.strategy + (plan.gamma ? ` ${plan.gamma}` : ""));
  for (const {role, device, engine, model, memory, memory_planned} of plan.roles)
    entry(role, `${model}, ${engine} on ${device}, ${((memory || memory_planned) / GIB).toFixed(1)} GiB`);
  if (plan.revised?.proposed) entry("proposed", plan.revised.proposed);
  for (const each of plan.foreseen.slice(0, 6)) {
    const drafter = each.drafter ? `, drafter ${each.drafter}` : "";
    entry(`${each.strategy}${each.gamma ? ` ${each.gamma}` : ""}: target ${each.target}${drafter}`,
          `${each.tokens_per_second.toFixed(1)} tokens/s foreseen`);
  }
  box.replaceChildren(box.firstElementChild, list);
}
