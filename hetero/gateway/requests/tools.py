"""Tools as clients offer them, and which of them must be called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hetero.gateway.requests.reading import Body


class Function(Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"] = "function"
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, tool: Any) -> Any:
        """The Responses API has the function's fields beside its type."""
        if isinstance(tool, dict) and "function" not in tool and "name" in tool:
            return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        return tool


def functions_of(tools: Any) -> Any:
    """Without tools that a server would have to run itself (web search, ...): nobody could call those."""
    if not isinstance(tools, list):
        return tools
    return [tool for tool in tools if not isinstance(tool, dict) or tool.get("type", "function") == "function"]


class ToolChoice(Body):
    """``mode`` "auto": text or calls; "required": calls only; "none": text only. ``names``: of these functions only."""

    mode: Literal["auto", "required", "none"] = "auto"
    names: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _of(cls, choice: Any) -> Any:
        match choice:
            case "auto" | "none" | "":
                return {"mode": choice or "auto"}
            case "required" | "any":
                return {"mode": "required"}
            case str():
                return {"mode": "required", "names": [choice]}
            case {"function": {"name": str(name)}} | {"name": str(name)}:
                return {"mode": "required", "names": [name]}
            case {"type": "allowed_tools", **more}:
                allowed: Any = more.get("allowed_tools", more)
                tools = allowed.get("tools") if isinstance(allowed, dict) else None
                if not isinstance(tools, list):
                    raise ValueError("allowed_tools.tools must be a list")
                names = [_name(tool) for tool in tools]
                mode = "required" if allowed.get("mode") in ("required", "any") else "auto"
                return {"mode": mode, "names": [name for name in names if isinstance(name, str)]}
            case {"type": "auto" | "none" as mode}:
                return {"mode": mode}
            case {"type": "any" | "required"}:
                return {"mode": "required"}
            case {"mode": "auto" | "none" | "required"}:
                return choice
            case {} if not choice:
                return {}
        raise ValueError("must be 'auto', 'none', 'required', or name a function")


def _name(tool: Any) -> Any:
    """Of a tool as a choice of some names it."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    return inner.get("name") if isinstance(inner, dict) else None
