#pragma once

// What one rank's kernels reach while all ranks compute, over operands that come from memory and not from caches: so
// they do in a training step.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/cluster.hpp"
#include "executor/run/calibration.hpp"

namespace shardwright {

inline Figure measuredFigure(double value, const std::string& source)
{
    return {value, Provenance::Measured, source};
}

double medianSeconds(std::vector<double> values);

/// Operands of one call after those of another, until caches have forgotten the first.
template <typename Operands> class Rotating {
public:
    template <typename Make> Rotating(std::int64_t bytesOfOne, Make make)
    {
        // assumed: beyond a rank's share of any last-level cache. A few bytes are of a latency, and stay where they
        // are.
        constexpr std::int64_t kBeyondCaches = 128 << 20;
        constexpr std::int64_t kMost = 256;
        const std::int64_t count = std::clamp<std::int64_t>(kBeyondCaches / bytesOfOne + 1, 2, kMost);
        for (std::int64_t i = 0; i < count; ++i)
            m_operands.push_back(make());
    }
    Operands& next() { return m_operands[m_next++ % m_operands.size()]; }

private:
    std::vector<Operands> m_operands;
    std::size_t m_next = 0;
};

/// Peak rates of matrix products and the measured rates of `gpu`, as the kernels of executor/layers reach them.
void measureKernels(Gpu& gpu, const CalibrationOptions& options,
                    const std::function<void(const std::string&)>& progress);

} // namespace shardwright
