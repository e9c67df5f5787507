#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace octet {

// How many threads of a team to set to work: all, but where other processes want the cores, so many as are fastest.
// A thread that is taken off its core is waited for by all others, so that fewer may do more.
class Crew {
 public:
  explicit Crew(int threads) : most_(threads) {}
  int choose(int rows);
  void learn(int rows, int threads, double seconds, int switches);

 private:
  static constexpr int kSizes = 12, kMost = 256;
  static int bucket(int rows);
  int neighbour(int threads);

  const int most_;
  double crowded_ = 0;             // involuntary switches of a run, lately
  int runs_ = 0;
  bool up_ = false;
  float times_[kSizes][kMost] = {};  // seconds by log2 of the rows and threads, lately; 0: not known
};

// Threads that do a model's forwards: they wait asleep between two, and between phases spin for a moment first.
struct Team {
  static constexpr int kMost = 256;

  explicit Team(int threads);
  ~Team();
  void run(int rows, void (*work)(void*), void* with);
  int take(int count, int chunk);
  void meet();
  int active() const { return active_; }
  static thread_local int me;

  const int size;

 private:
  void wait(const std::atomic<uint32_t>& word, uint32_t old);
  void wake();
  void serve(int id);
  void work_with();

  std::vector<std::thread> threads_;
  std::atomic<uint32_t> job_{0}, phase_{0};  // job: its number, and below how many threads take part
  std::atomic<int> arrived_{0}, next_[2] = {0, 0}, sleeping_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
  void (*work_)(void*) = nullptr;
  void* with_ = nullptr;
  void end();

  std::atomic<bool> ended_{false};
  int active_ = 1;  // threads that take part in this job
  std::atomic<int> switches_{0};
  Crew crew_;
};

}  // namespace octet
