#pragma once

// The items of a stretch as one run of them needs them: every end that an item waits for by its place among the values
// of that run. A run's values are, one after the other: 0, when the host turned to the stretch; the state of the clocks
// that it met (ends of before as they are known then); the ends of its items.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace shardwright {

/// What an item that stands for one or several operations costs.
struct FusedTime {
    double seconds = 0;     // busy on its stream
    double afterHost = 0;   // from when the host turns to it to its end, where the stream is free all along
    double hostSeconds = 0; // to issue it
};

struct StretchProgram {
    static constexpr std::uint16_t kNothing = 0; // the value 0: nothing is over before the host turns to the stretch

    struct Step {
        std::uint32_t fused = 0;
        std::uint16_t previous = kNothing; // on its stream
        std::uint16_t awaited = kNothing;
        std::uint16_t hostAwaited = kNothing; // by the host itself
        std::uint16_t further = 0;            // waits besides
    };
    struct Further {
        std::uint16_t value;
        bool blocksHost;
    };
    struct Done {
        double lead = 0; // how much later the host could have issued any item without moving an end
        double host = 0; // when it has issued them all
    };

    /// Runs all items once; `values` holds those up to `firstEnd`, ends are written behind them.
    Done run(const std::vector<FusedTime>& times, double* values) const
    {
        double lead = std::numeric_limits<double>::infinity();
        double host = 0;
        const Further* more = further.data();
        double* end = values + firstEnd;
        for (const Step& step : steps) {
            const FusedTime& time = times[step.fused];
            double start = std::max(values[step.previous], values[step.awaited]);
            host = std::max(host, values[step.hostAwaited]);
            for (const Further* last = more + step.further; more != last; ++more) {
                const double awaited = values[more->value];
                host = more->blocksHost ? std::max(host, awaited) : host;
                start = more->blocksHost ? start : std::max(start, awaited);
            }
            const double streamEnd = start + time.seconds;
            const double hostEnd = host + time.afterHost;
            host += time.hostSeconds;
            lead = std::min(lead, streamEnd - hostEnd);
            *end++ = std::max(streamEnd, hostEnd);
        }
        return {lead, host};
    }

    std::size_t firstEnd = 1;
    std::vector<Step> steps;
    std::vector<Further> further; // of all steps, in order
};

} // namespace shardwright
