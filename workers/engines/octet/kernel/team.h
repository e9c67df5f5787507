#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace octet {

// Threads that do a model's forwards: they wait asleep between two, and between phases spin for a moment first.
struct Team {
  explicit Team(int threads);
  ~Team();
  void run(void (*work)(void*), void* with);
  int take(int count, int chunk);
  void meet();
  static thread_local int me;

  const int size;

 private:
  void wait(const std::atomic<uint32_t>& word, uint32_t old);
  void wake();
  void serve(int id);

  std::vector<std::thread> threads_;
  std::atomic<uint32_t> job_{0}, phase_{0};
  std::atomic<int> arrived_{0}, next_[2] = {0, 0}, sleeping_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
  void (*work_)(void*) = nullptr;
  void* with_ = nullptr;
  bool ended_ = false;
};

}  // namespace octet
