#include "executor/layers/worker_pool.hpp"

#include <algorithm>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "core/diagnostics.hpp"

namespace shardwright {

namespace {

/// Stretches a thread takes at least, so that threads that are slower or began later take fewer.
constexpr std::int64_t kStretchesPerThread = 4;

} // namespace

WorkerPool::WorkerPool(int threads)
{
    try {
        for (int i = 1; i < threads; ++i)
            m_threads.emplace_back([this] { serve(); });
    } catch (const std::system_error& error) {
        const int got = this->threads();
        end();
        throw EnvironmentError(
            fmt::format("only {} of {} computing threads can be had: {}", got, threads, error.code().message()));
    }
}

WorkerPool::~WorkerPool()
{
    end();
}

void WorkerPool::end()
{
    {
        const std::lock_guard lock(m_mutex);
        m_stop = true;
    }
    m_begun.notify_all();
    for (std::thread& thread : m_threads)
        thread.join();
}

void WorkerPool::run(std::int64_t count, std::int64_t grain, Call call, const void* context)
{
    std::unique_lock lock(m_mutex);
    m_call = call;
    m_context = context;
    m_next = 0;
    m_count = count;
    m_grain = std::max({std::int64_t{1}, grain, count / (threads() * kStretchesPerThread)});
    lock.unlock();
    m_begun.notify_all();
    lock.lock();
    takeStretches(lock);
    m_ended.wait(lock, [this] { return m_busy == 0; });
    if (m_failure)
        std::rethrow_exception(std::exchange(m_failure, nullptr));
}

void WorkerPool::serve()
{
    std::unique_lock lock(m_mutex);
    for (;;) {
        m_begun.wait(lock, [this] { return m_stop || m_next < m_count; });
        if (m_stop)
            return;
        takeStretches(lock);
        if (m_busy == 0)
            m_ended.notify_one();
    }
}

void WorkerPool::takeStretches(std::unique_lock<std::mutex>& lock)
{
    while (m_next < m_count) {
        const std::int64_t begin = m_next;
        const std::int64_t end = std::min(m_count, begin + m_grain);
        m_next = end;
        ++m_busy;
        lock.unlock();
        std::exception_ptr failure;
        try {
            m_call(m_context, begin, end);
        } catch (...) {
            failure = std::current_exception();
        }
        lock.lock();
        --m_busy;
        if (failure) {
            m_failure = failure;
            m_next = m_count; // nobody begins anew
        }
    }
}

} // namespace shardwright
