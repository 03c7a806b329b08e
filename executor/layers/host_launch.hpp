#pragma once

// Runs functors in loops on the host.

#include <algorithm>
#include <vector>

#include "executor/layers/operations.hpp"
#include "executor/layers/worker_pool.hpp"

namespace shardwright {

class HostLaunch {
public:
    explicit HostLaunch(int threads) : pool(threads) {}

    template <typename Functor> void each(std::int64_t count, Functor functor)
    {
        pool.share(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
            const Functor own = functor; // in registers: no store can change it
#pragma omp simd
            for (std::int64_t i = begin; i < end; ++i)
                own(i);
        });
    }

    template <typename Functor> void rows(std::int64_t count, std::int64_t work, Functor functor)
    {
        pool.share(count, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, work)),
                   [&](std::int64_t begin, std::int64_t end) {
                       const Functor own = functor;
                       for (std::int64_t i = begin; i < end; ++i)
                           own(i);
                   });
    }

    template <typename Functor> double sum(std::int64_t count, std::int64_t work, Functor functor)
    {
        m_terms.resize(static_cast<std::size_t>(count));
        double* terms = m_terms.data();
        pool.share(count, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, work)),
                   [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t i = begin; i < end; ++i)
                           terms[i] = functor(i);
                   });
        double total = 0;
        for (const double term : m_terms)
            total += term;
        return total;
    }

    TokenGroups groupsOf(const std::int64_t* tokens, std::int64_t rows, std::int64_t vocab);
    const float* rotation(std::int64_t length, const RotaryFrequencies& frequencies);

    WorkerPool pool;

private:
    // Elements that are worth waking a thread for: some ten microseconds' work.
    static constexpr std::int64_t kGrain = 16384;

    std::vector<double> m_terms;
    std::vector<std::int64_t> m_begin, m_order;
    std::vector<float> m_rotation;
    std::int64_t m_length = 0;
    RotaryFrequencies m_frequencies;
};

} // namespace shardwright
