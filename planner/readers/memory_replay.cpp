#include "planner/readers/memory_replay.hpp"

#include <algorithm>
#include <stdexcept>

#include <fmt/format.h>

namespace shardwright {

namespace {

/// Live bytes of one place, with the counts at the peak.
struct Tally {
    Bytes live;
    PlacePeak peak;
    bool rising = false; // the peak is now: its counts are taken down once something is freed
};

class Replay {
public:
    Replay(const Schedule& schedule, bool withCurve) : m_schedule(schedule), m_withCurve(withCurve)
    {
        const std::size_t classes = schedule.sizes.buffers.size();
        for (const BufferClass& each : schedule.sizes.buffers)
            m_classes.push_back({each.bytes, each.spec->place, each.spec->category,
                                 each.spec->place == Place::Gpu && each.spec->lifetime == Lifetime::FromFirstStep});
        m_counts.assign(classes, 0);
        m_alive.assign(schedule.buffers.size(), 0);
        for (Tally& tally : m_tallies)
            tally.peak.liveCounts.assign(classes, 0);
    }

    MemoryReplay run()
    {
        MemoryReplay result;
        for (std::size_t i = 0; i < m_schedule.segments.size(); ++i) {
            const Segment& segment = m_schedule.segments[i];
            const bool init = segment.firstOp < segment.endOp && m_schedule.ops[segment.firstOp].phase == Phase::Init;
            for (std::uint32_t op = segment.firstOp; op < segment.endOp; ++op)
                play(static_cast<OpId>(op), init);
            if (init)
                startSteadyState(result);
            else if (m_sawMicroSteps && i + 2 == m_schedule.segments.size())
                result.gpuHeldBeforeFirstStep = tally(Place::Gpu).live - m_lazyGpu;
            m_sawMicroSteps = true;
            if (i + 2 == m_schedule.segments.size())
                result.gpuPeakBeforeFirstStep = m_peakWithoutLazy;
        }
        for (Tally& one : m_tallies)
            takeDown(one);
        result.gpu = tally(Place::Gpu).peak;
        result.gpuHeld = tally(Place::Gpu).live;
        for (std::size_t i = 0; i < result.gpu.liveCounts.size(); ++i) {
            const BufferClass& bufferClass = m_schedule.sizes.buffers[i];
            if (bufferClass.spec->place == Place::Gpu)
                result.gpuByCategory[static_cast<std::size_t>(bufferClass.spec->category)] +=
                    bufferClass.bytes * result.gpu.liveCounts[i];
        }
        result.hostPinned = tally(Place::HostPinned).peak;
        result.hostPageable = tally(Place::HostPageable).peak;
        result.nvme = tally(Place::Nvme).peak;
        result.curve = std::move(m_curve);
        return result;
    }

private:
    Tally& tally(Place place) { return m_tallies[static_cast<std::size_t>(place)]; }

    /// Lazily made buffers stand in the initialisation for order's sake but exist only from the first step on.
    void startSteadyState(MemoryReplay& result)
    {
        result.gpuInitPeak = m_initPeak;
        for (const Place place : {Place::Gpu, Place::HostPinned, Place::HostPageable, Place::Nvme}) {
            Tally& one = tally(place);
            one.peak.bytes = Bytes(0);
            remember(one, -1);
        }
        m_peakWithoutLazy = Bytes(0);
    }

    void remember(Tally& one, OpId op)
    {
        if (one.live <= one.peak.bytes && one.peak.op >= 0)
            return;
        one.peak.bytes = one.live;
        one.peak.op = op;
        one.rising = true;
    }

    void takeDown(Tally& one)
    {
        if (one.rising)
            one.peak.liveCounts = m_counts;
        one.rising = false;
    }

    void play(OpId id, bool init)
    {
        const Op& op = m_schedule.ops[static_cast<std::size_t>(id)];
        Bytes highest = tally(Place::Gpu).live;
        CategoryBytes atHighest = m_withCurve ? m_categories : CategoryBytes{};
        for (std::uint32_t i = 0; i < op.eventCount; ++i) {
            const BufferEvent& event = m_schedule.events[op.firstEvent + i];
            if (event.change == BufferChange::Reclaim)
                continue;
            const bool allocates = event.change == BufferChange::Allocate;
            const auto buffer = static_cast<std::size_t>(event.buffer);
            if (event.buffer < 0 || (m_alive[buffer] != 0) == allocates)
                throw std::logic_error(fmt::format("operation {} ({}) {} buffer {} twice", id, nameOf(op.kind),
                                                   allocates ? "allocates" : "frees", event.buffer));
            m_alive[buffer] = allocates ? 1 : 0;
            const auto classId = static_cast<std::size_t>(m_schedule.buffers[buffer]);
            const Class& of = m_classes[classId];
            Tally& one = tally(of.place);
            if (!allocates)
                takeDown(one);
            m_counts[classId] += allocates ? 1 : -1;
            const bool gpu = of.place == Place::Gpu;
            const auto change = [&](Bytes& bytes) { allocates ? bytes += of.bytes : bytes -= of.bytes; };
            change(one.live);
            if (gpu && m_withCurve)
                change(m_categories[static_cast<std::size_t>(of.category)]);
            if (of.lazyGpu)
                change(m_lazyGpu);
            if (allocates && !init)
                keepPeak(one, id);
            if (gpu && init)
                m_initPeak = std::max(m_initPeak, one.live - m_lazyGpu);
            if (gpu && one.live > highest) {
                highest = one.live;
                if (m_withCurve)
                    atHighest = m_categories;
            }
        }
        if (!init)
            m_peakWithoutLazy = std::max(m_peakWithoutLazy, highest - m_lazyGpu);
        if (m_withCurve && op.eventCount > 0 && !init)
            m_curve.push_back({id, op.phase, op.layer, highest, atHighest});
    }

    void keepPeak(Tally& one, OpId op)
    {
        if (one.live > one.peak.bytes)
            remember(one, op);
    }

    /// What is asked of a buffer class again and again.
    struct Class {
        Bytes bytes;
        Place place;
        Category category;
        bool lazyGpu;
    };

    const Schedule& m_schedule;
    bool m_withCurve;
    std::vector<Class> m_classes;
    std::vector<std::int32_t> m_counts;
    std::vector<std::uint8_t> m_alive; // by buffer: a byte is read faster than a bit
    std::array<Tally, 4> m_tallies;
    CategoryBytes m_categories{};
    Bytes m_lazyGpu;
    Bytes m_initPeak;
    Bytes m_peakWithoutLazy;
    bool m_sawMicroSteps = false;
    std::vector<CurvePoint> m_curve;
};

} // namespace

MemoryReplay replayMemory(const Schedule& schedule, bool withCurve)
{
    return Replay(schedule, withCurve).run();
}

std::vector<LiveItem> liveItems(const SizeTable& sizes, const std::vector<std::int32_t>& liveCounts, Place place)
{
    std::vector<LiveItem> items;
    for (std::size_t i = 0; i < liveCounts.size(); ++i) {
        const BufferClass& bufferClass = sizes.buffers[i];
        if (liveCounts[i] == 0 || bufferClass.spec->place != place || bufferClass.bytes == Bytes(0))
            continue;
        const BufferSpec& spec = *bufferClass.spec;
        items.push_back({std::string(spec.name), std::string(spec.formula), std::string(spec.source), spec.category,
                         place, liveCounts[i], bufferClass.bytes});
    }
    std::stable_sort(items.begin(), items.end(),
                     [](const LiveItem& a, const LiveItem& b) { return a.bytes() > b.bytes(); });
    return items;
}

} // namespace shardwright
