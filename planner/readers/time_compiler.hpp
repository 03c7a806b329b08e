#pragma once

// Schedule -> TimeForm: what is left of a schedule's structure when only the step's time matters.

#include <map>
#include <vector>

#include "planner/readers/time_form.hpp"

namespace shardwright {

class TimeCompiler {
public:
    TimeCompiler(const Schedule& schedule, const std::vector<int>& layerClasses, TimeForm& form);
    void run();

private:
    struct Awaits {
        std::int32_t target; // index into m_raw
        bool blocksHost;
    };
    /// An operation of a step. What costs nothing and need not be there is not alive: the one before it on its stream
    /// stands for it, with all that it waits for.
    struct Raw {
        std::uint32_t slot = 0;
        std::uint8_t stream = 0;
        std::int32_t layer = -1; // whose computing it is
        bool free = false;       // Allocate, Release
        bool alive = true;
        bool stoodFor = false; // its stream has one before it and one after it in its segment
        bool awaited = false;
        std::int32_t standIn = -1;
        std::vector<Awaits> waits;
    };
    /// Equal bodies in a row, as positions of a segment's sequence.
    struct Loop {
        std::size_t first;
        std::size_t length;
        std::size_t repeat;
    };
    /// Where a raw operation's end is to be found.
    struct Placed {
        std::uint32_t segment = 0;
        std::uint32_t node = 0;
        std::int64_t unrolled = 0; // items of the segment before it, had loops been written out
    };
    struct Segment {
        std::int32_t firstRaw = 0;
        std::int32_t endRaw = 0;
        std::vector<std::int32_t> sequence; // alive, in order
        std::vector<Loop> loops;
    };

    void collect();
    void dropImpliedWaits();
    void awaitInstead(const Awaits& wait, std::vector<Awaits>& waits) const;
    void findStoodFor();
    void dropFree();
    std::vector<int> signatures(const Segment& segment) const;
    void findLoops(Segment& segment);
    std::size_t iterationsWaitedBack(const Segment& segment, const Loop& loop) const;
    void emitSegment(std::uint32_t index);
    void emitNode(std::uint32_t segment, std::size_t first, std::size_t length, std::size_t repeat);
    void emitWaits(const Raw& raw, std::uint32_t segment, std::int64_t at, bool inLoop, TimeForm::Item& item);
    std::int32_t registerOf(std::int32_t target);
    void saveAfterLoops();
    std::uint32_t fused(const std::vector<std::uint32_t>& slots);

    const Schedule& m_schedule;
    const std::vector<int>& m_layerClasses;
    TimeForm& m_form;
    std::vector<Raw> m_raw;
    std::vector<Segment> m_segments;
    std::vector<Placed> m_placed;                     // by raw operation
    std::vector<std::uint32_t> m_itemOf;              // by raw operation outside loops
    std::vector<std::int64_t> m_nodeEnd;              // by node: unrolled items of the segment up to its end
    std::vector<std::uint32_t> m_layerStarts;         // items that begin a layer's pass
    std::int32_t m_layer = -1;                        // at hand
    std::map<std::int32_t, std::int32_t> m_registers; // of raw operations
    std::map<std::vector<std::uint32_t>, std::uint32_t> m_fusedIds;
    std::int64_t m_unrolled = 0;
    std::int64_t m_lastLoopEnd = 0; // of the segment: nothing before it is at a fixed distance
    std::int64_t m_furthest = 1;    // items back that a wait or a loop looks
};

} // namespace shardwright
