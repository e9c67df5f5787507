#include "team.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>

#include "types.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octet {

namespace {

// Looks at a word before a thread falls asleep: some 20 microseconds. Who spins for longer is in the way where other
// processes want the cores, and is taken off them just when there is work again.
constexpr int kLooks = 600;

constexpr uint32_t kJob = 1024;   // of the word that tells of a job: above, its number; below, threads that take part
constexpr double kCrowded = 0.3;  // involuntary switches of a run from which on others want the cores
constexpr double kForget = 0.05;  // share by which a run counts in what was lately
constexpr float kWeigh = 0.3f;
constexpr int kTry = 16;  // of so many runs one tries another number of threads

// How often this thread was taken off its core while it had work.
int involuntary_switches() {
#if defined(RUSAGE_THREAD)
  rusage found;
  return getrusage(RUSAGE_THREAD, &found) == 0 ? static_cast<int>(found.ru_nivcsw) : 0;
#else
  return 0;
#endif
}

void breathe() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

}  // namespace

thread_local int Team::me = 0;

int Crew::bucket(int rows) {
  int found = 0;
  while (rows > 1 && found < kSizes - 1) rows = (rows + 1) / 2, ++found;
  return found;
}

int Crew::neighbour(int threads) {
  const int step = std::max(1, most_ / 8);
  up_ = !up_;
  return std::min(most_, std::max(1, threads + (up_ ? step : -step)));
}

int Crew::choose(int rows) {
  if (crowded_ < kCrowded || most_ > kMost) return most_;
  const float* times = times_[bucket(rows)];
  int best = most_;
  for (int n = 1; n <= most_; ++n)
    if (times[n - 1] > 0 && (times[best - 1] == 0 || times[n - 1] < times[best - 1])) best = n;
  return ++runs_ % kTry == 0 ? neighbour(best) : best;
}

void Crew::learn(int rows, int threads, double seconds, int switches) {
  crowded_ += kForget * (switches - crowded_);
  float& time = times_[bucket(rows)][std::min(threads, kMost) - 1];
  time = time > 0 ? time + kWeigh * (static_cast<float>(seconds) - time) : static_cast<float>(seconds);
}

Team::Team(int threads) : size(threads), crew_(threads) {
  try {
    for (int id = 1; id < threads; ++id) threads_.emplace_back([this, id] { serve(id); });
  } catch (...) {  // there are no more threads to be had
    end();
    throw;
  }
}

Team::~Team() { end(); }

void Team::end() {
  ended_ = true;
  job_ += kJob;
  wake();
  for (auto& thread : threads_) thread.join();
}

void Team::run(int rows, void (*work)(void*), void* with) {
  work_ = work;
  with_ = with;
  active_ = crew_.choose(rows);
  switches_ = 0;
  const auto began = std::chrono::steady_clock::now();
  job_ = ((job_ / kJob + 1) * kJob) | static_cast<uint32_t>(active_);
  if (active_ > 1) wake();
  me = 0;
  work_with();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  crew_.learn(rows, active_, took.count(), switches_);
}

void Team::work_with() {
  const int before = involuntary_switches();
  work_(with_);
  switches_ += involuntary_switches() - before;
  meet();  // nobody is at work after it
}

void Team::serve(int id) {
  me = id;
  for (uint32_t job = 0;;) {
    wait(job_, job);
    job = job_;  // who does not take part may have slept through some
    if (ended_) return;
    if (id < static_cast<int>(job % kJob)) work_with();
  }
}

int Team::take(int count, int chunk) {
  const int found = next_[phase_ & 1].fetch_add(chunk);
  return found < count ? found : -1;
}

void Team::meet() {
  const uint32_t phase = phase_;
  const int active = active_;  // of this job: once all have arrived the next may begin
  if (arrived_.fetch_add(1) + 1 < active) return wait(phase_, phase);
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
int team_size(Team* team) { return team->active(); }
void team_meet(Team* team) { team->meet(); }

}  // namespace octet
