#pragma once

// Threads that share one rank's computing.

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace shardwright {

/// Work is split by its indices only, so results do not depend on which thread did what.
class WorkerPool {
public:
    /// EnvironmentError where the machine has no more threads.
    explicit WorkerPool(int threads);
    ~WorkerPool();
    WorkerPool(const WorkerPool&) = delete;
    WorkerPool& operator=(const WorkerPool&) = delete;

    int threads() const { return static_cast<int>(m_threads.size()) + 1; }

    /// body(begin, end) over stretches of [0, count), at least `grain` long but for the last; the calling thread takes
    /// part and returns when all is done. An exception of the body is thrown here.
    template <typename Body> void share(std::int64_t count, std::int64_t grain, const Body& body)
    {
        if (count <= grain || m_threads.empty()) {
            if (count > 0)
                body(std::int64_t{0}, count);
            return;
        }
        run(
            count, grain,
            [](const void* context, std::int64_t begin, std::int64_t end) {
                (*static_cast<const Body*>(context))(begin, end);
            },
            &body);
    }

private:
    using Call = void (*)(const void* context, std::int64_t begin, std::int64_t end);
    void run(std::int64_t count, std::int64_t grain, Call call, const void* context);
    void serve();
    void takeStretches(std::unique_lock<std::mutex>& lock);
    void end();

    std::mutex m_mutex;
    std::condition_variable m_begun, m_ended;
    std::vector<std::thread> m_threads;
    // The work at hand, all under m_mutex.
    Call m_call = nullptr;
    const void* m_context = nullptr;
    std::int64_t m_next = 0, m_count = 0, m_grain = 1;
    int m_busy = 0;
    std::exception_ptr m_failure;
    bool m_stop = false;
};

} // namespace shardwright
