#pragma once

// The step time of a candidate without its schedule: simulate() for searches.
//
// A schedule's structure is compiled once. Operations that always cost the same share a slot; waits that others imply
// are dropped; operations that cost nothing hand on what they wait for; runs of operations on one stream that nobody
// waits for in between become one; runs of equal layers become loops. To evaluate a candidate, slots get seconds and
// the recurrence of ends is run over what is left: a loop only until two iterations in a row move everything by the
// same time, the rest is multiplied out. Where layers are not all alike, stretches that are, and whole segments, are
// run once from each state of the clocks that they meet.

#include <cstdint>
#include <vector>

#include "core/schedule.hpp"
#include "planner/costs/overlap_costs.hpp"
#include "planner/readers/steady_state.hpp"
#include "planner/readers/stretch_memo.hpp"
#include "planner/readers/stretch_program.hpp"

namespace shardwright {

/// What one slot costs.
struct SlotTime {
    double seconds = 0;     // busy on its stream
    double hostSeconds = 0; // to issue it
};

class TimeForm {
public:
    /// `layerClasses`: by position in Model::layers; layers of one class run alike, stage by stage.
    TimeForm(const Schedule& schedule, const std::vector<int>& layerClasses);

    /// One operation for each slot: what its times are to be asked for. Payloads and groups are named by id, so their
    /// sizes may have changed since. Allocate and Release are taken to cost nothing.
    const std::vector<Op>& slots() const { return m_slots; }

    /// Seconds of a step, as simulate() gives them. `repeat`: of the segments after initialisation, in order; how often
    /// each runs. Not thread-safe.
    double seconds(const std::vector<SlotTime>& times, const std::vector<std::int64_t>& repeat);
    double seconds(const std::vector<SlotTime>& times) { return seconds(times, m_repeats); }

    /// Never more than seconds(): each stream, and the host, must do its own work.
    double lowerBound(const std::vector<SlotTime>& times, const std::vector<std::int64_t>& repeat) const;

    /// What a step's operations take altogether.
    StepLoad load(const std::vector<SlotTime>& times, const std::vector<std::int64_t>& repeat) const;

    /// Repetitions of the segments of the schedule that it was compiled from.
    const std::vector<std::int64_t>& repeats() const { return m_repeats; }

    /// Operations left to run one by one: what an evaluation costs.
    std::size_t items() const { return m_items.size(); }

private:
    friend class TimeCompiler;
    friend class TimeStretches;

    /// Slots run one after the other on one stream, waits only before the first.
    struct Fused {
        std::uint32_t firstSlot; // into m_fusedSlots
        std::uint32_t endSlot;
    };
    /// back > 0: what ended so many items ago; else what was saved in register -back.
    struct Awaited {
        std::int32_t back;
        bool blocksHost;
    };
    struct Item {
        std::uint32_t fused;
        std::int32_t saveAs; // register that keeps its end, or -1
        std::uint32_t firstWait;
        std::uint16_t waits;
        std::uint8_t stream;
    };
    struct Saved {
        std::int32_t back; // of the node's end: 1 is its last item
        std::int32_t reg;
    };
    /// Items run `repeat` times in a row.
    struct Node {
        std::uint32_t firstItem = 0;
        std::uint32_t endItem = 0;
        std::int64_t repeat = 1;
        std::int64_t reach = 1;       // iterations back that its items and what follows wait for
        std::uint32_t firstSaved = 0; // saved after the node
        std::uint32_t endSaved = 0;
        std::uint32_t firstStretch = 0; // its items, where they are cut into stretches
        std::uint32_t endStretch = 0;
    };
    /// What stretches of the same operations and waits have in common.
    struct StretchKind {
        StretchProgram program;
        std::vector<std::uint8_t> streams;
        // Streams on which it only leaves work: nothing in it waits for that, so that their clocks change no other
        // end. They are run as if free; an end on them is that, or what they had before and have had since.
        std::vector<std::uint8_t> drains;
        std::vector<std::uint16_t> lastSteps; // by stream, then by drain
        std::vector<std::int8_t> drainOf;     // by step: its place among the drains, or -1; empty without drains
        std::size_t inputs = 0;               // ends from before it that it waits for
        StretchMemo memo; // 0, clocks of the streams, inputs; ends, the lead, the host's clock, busy time of drains

        std::size_t lead() const { return program.firstEnd + program.steps.size(); }
        std::size_t host() const { return lead() + 1; }
        std::size_t busy() const { return lead() + 2; } // of an item's drain up to its end, by step
    };
    struct Stretch {
        std::uint32_t firstItem = 0;
        std::uint32_t endItem = 0;
        std::uint32_t kind = 0;
        std::uint32_t firstInput = 0;  // into m_inputs, as Awaited::back from its beginning
        std::uint32_t firstOutput = 0; // into m_outputs: items from its beginning whose ends are asked for later
        std::uint32_t endOutput = 0;
    };
    /// Segments of the same nodes.
    struct SegmentKind {
        std::vector<std::uint8_t> streams;
        StretchMemo memo; // clocks before; clocks and the host's after
        // Where nothing blocks the host and it runs ahead of all streams: clocks before and after, since that of the
        // first stream before; how late the host could have turned to it, and for how long it is at it.
        StretchMemo ahead;
        bool blocksHost = false;
    };
    struct SegmentForm {
        std::uint32_t firstNode = 0;
        std::uint32_t endNode = 0;
        std::array<bool, kClocks> used{};
        bool alone = true; // waits for nothing in another segment
        std::uint32_t kind = 0;
        std::vector<std::pair<std::uint32_t, std::int64_t>> slotCounts;
    };
    /// A slot that counts in a step's load: by how much a second of it.
    struct Loading {
        StepLoad each;
        std::uint32_t slot = 0;
        std::uint32_t segment = 0;
        double count = 0;
    };
    void fuseTimes(const std::vector<SlotTime>& times);
    void runSegment(const SegmentForm& segment, std::int64_t repeat);
    void runOnce(const SegmentForm& segment);
    static Clocks sinceFirst(const SegmentKind& kind, const Clocks& clocks);
    bool runAhead(SegmentKind& kind);
    void rememberAhead(SegmentKind& kind, const Clocks& before, double lead);
    // Each returns how much later the host could have issued any of what it ran without moving an end.
    double runNodes(const SegmentForm& segment);
    double runLoop(const Node& node);
    double runStretch(const Stretch& stretch);
    const double* playStretch(StretchKind& kind);
    double runItems(std::uint32_t first, std::uint32_t last);
    double& endOf(std::size_t back) { return m_ends[(m_position - back) & m_mask]; }
    double awaited(std::int32_t back)
    {
        return back > 0 ? endOf(static_cast<std::size_t>(back)) : m_registers[static_cast<std::size_t>(-back)];
    }
    double sameState() const { return kSameState * (m_clocks[kHostClock] + m_once); }

    std::vector<Op> m_slots;
    std::vector<std::uint32_t> m_fusedSlots;
    std::vector<Fused> m_fused;
    std::vector<FusedTime> m_fusedTimes;
    std::vector<Item> m_items;
    std::vector<Awaited> m_waits;
    std::vector<Node> m_nodes;
    std::vector<Saved> m_savedAfter;
    std::vector<Stretch> m_stretches;
    std::vector<StretchKind> m_stretchKinds;
    std::vector<std::int32_t> m_inputs;
    std::vector<std::uint32_t> m_outputs;
    std::vector<SegmentKind> m_segmentKinds;
    bool m_apart = true; // no segment waits for anything in another
    std::vector<SegmentForm> m_segments;
    std::vector<Loading> m_loading;
    std::vector<std::int64_t> m_repeats;
    std::array<bool, kClocks> m_used{};

    // State of an evaluation.
    Clocks m_clocks{};
    std::vector<double> m_ends; // of the last items run, a ring
    std::size_t m_position = 0;
    std::size_t m_mask = 0;
    std::vector<double> m_registers;
    std::vector<Clocks> m_reached;
    std::vector<Clocks> m_reachedSteps;
    std::vector<double> m_state; // before a stretch or a segment, as its memo wants it
    double m_once = 0;           // seconds of every kind of item once: the scale of what is small
};

} // namespace shardwright
