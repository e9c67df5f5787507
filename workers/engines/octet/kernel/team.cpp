#include "team.h"

#include "types.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octet {

namespace {

// Looks at a word before a thread falls asleep: some 20 microseconds. Who spins for longer is in the way where other
// processes want the cores, and is taken off them just when there is work again.
constexpr int kLooks = 600;

void breathe() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

}  // namespace

thread_local int Team::me = 0;

Team::Team(int threads) : size(threads) {
  for (int id = 1; id < threads; ++id) threads_.emplace_back([this, id] { serve(id); });
}

Team::~Team() {
  ended_ = true;
  ++job_;
  wake();
  for (auto& thread : threads_) thread.join();
}

void Team::run(void (*work)(void*), void* with) {
  work_ = work;
  with_ = with;
  ++job_;
  wake();
  me = 0;
  work(with);  // ends with a meeting: nobody is at work after it
}

void Team::serve(int id) {
  me = id;
  for (uint32_t done = 0;;) {
    wait(job_, done);
    ++done;
    if (ended_) return;
    work_(with_);
  }
}

int Team::take(int count, int chunk) {
  const int found = next_[phase_ & 1].fetch_add(chunk);
  return found < count ? found : -1;
}

void Team::meet() {
  const uint32_t phase = phase_;
  if (arrived_.fetch_add(1) + 1 < size) return wait(phase_, phase);
  arrived_ = 0;
  next_[phase & 1] = 0;
  phase_ = phase + 1;
  wake();
}

void Team::wait(const std::atomic<uint32_t>& word, uint32_t old) {
  for (int n = 0; n < kLooks; ++n) {
    if (word != old) return;
    breathe();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  ++sleeping_;
  woken_.wait(lock, [&] { return word != old; });
  --sleeping_;
}

void Team::wake() {
  if (!sleeping_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  woken_.notify_all();
}

int team_take(Team* team, int count, int chunk) { return team->take(count, chunk); }
int team_me(Team*) { return Team::me; }
int team_size(Team* team) { return team->size; }
void team_meet(Team* team) { team->meet(); }

}  // namespace octet
