// The compiled form of the time simulation against the simulation itself.

#include "planner/readers/time_form.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/scenario_file.hpp"
#include "planner/activations/activation_model.hpp"
#include "planner/readers/time_simulation.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

/// Random but repeatable numbers.
class Random {
public:
    explicit Random(std::uint64_t seed) : m_state(seed * 2654435761u + 12345) {}
    std::uint64_t below(std::uint64_t limit)
    {
        m_state = m_state * 6364136223846793005u + 1442695040888963407u;
        return (m_state >> 33) % limit;
    }
    bool oneIn(std::uint64_t n) { return below(n) == 0; }
    double seconds() { return static_cast<double>(below(1 << 20)) * 1.37e-6; }

private:
    std::uint64_t m_state;
};

/// A schedule, and what an operation costs by the payload that it names.
struct Costed {
    Schedule schedule;
    std::vector<SlotTime> ofPayload;

    SlotTime of(const Op& op) const
    {
        const bool free = op.kind == OpKind::Allocate || op.kind == OpKind::Release;
        return free ? SlotTime{} : ofPayload[static_cast<std::size_t>(op.payload)];
    }
    OpTimes opTimes() const
    {
        OpTimes times;
        for (const Op& op : schedule.ops) {
            times.seconds.push_back(of(op).seconds);
            times.hostSeconds.push_back(of(op).hostSeconds);
        }
        return times;
    }
    std::vector<SlotTime> slotTimes(const TimeForm& form) const
    {
        std::vector<SlotTime> times;
        for (const Op& op : form.slots())
            times.push_back(of(op));
        return times;
    }
};

constexpr int kLayers = 3; // positions that layers have in turn, all of one class

/// Layers of random operations on five streams that wait for earlier ones of their own and of neighbouring layers, for
/// events and for the beginning; between them operations that belong to no layer.
Costed randomLayers(std::uint64_t seed)
{
    Random random(seed);
    constexpr std::size_t kPayloads = 40;
    constexpr std::array<Stream, 6> streams{Stream::Compute,   Stream::Compute, Stream::Compute,
                                            Stream::AllGather, Stream::Reduce,  Stream::HostToDevice};
    Costed result;
    for (std::size_t i = 0; i < kPayloads; ++i) {
        // Some hosts keep up easily, some do not.
        const double host = random.seconds() * (seed % 3 == 0 ? 1.0 : 0.1);
        result.ofPayload.push_back({random.oneIn(8) ? 0 : random.seconds(), host});
    }
    ScheduleBuilder builder{SizeTable{}};
    builder.beginSegment("initialisation");
    builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
    std::uint64_t payload = 0;
    struct Pattern {
        OpKind kind;
        Stream stream;
        PayloadId payload;
        std::vector<std::pair<OpId, bool>> back; // operations back, whether the host waits
        bool forBegin;
    };
    OpId begin = -1;
    const auto write = [&](const Pattern& pattern, std::int32_t layer = -1) {
        builder.op(pattern.kind, pattern.stream, Phase::Forward, layer);
        if (pattern.kind == OpKind::Copy)
            builder.move(pattern.payload);
        const OpId last = builder.lastOp();
        for (const auto& [back, blocks] : pattern.back)
            if (last - back > 0)
                blocks ? builder.blockHost(last - back) : builder.wait(last - back);
        if (pattern.forBegin)
            builder.wait(begin);
    };
    const auto pattern = [&](std::uint64_t reach) {
        const bool free = random.oneIn(4);
        Pattern made{free ? OpKind::Release : OpKind::Copy,
                     streams[random.below(streams.size())],
                     static_cast<PayloadId>(payload++ % kPayloads),
                     {},
                     random.oneIn(6)};
        while (random.oneIn(2) && made.back.size() < 3)
            made.back.emplace_back(static_cast<OpId>(1 + random.below(reach)), random.oneIn(5));
        return made;
    };
    const auto layers = [&] {
        std::vector<Pattern> body;
        const std::uint64_t length = 1 + random.below(9);
        for (std::uint64_t i = 0; i < length; ++i)
            body.push_back(pattern(1 + length * (1 + random.below(3))));
        const std::uint64_t repeat = 1 + random.below(random.oneIn(3) ? 150 : 12);
        // Layers that are alike but for an operation here and there are stretches, not loops.
        const bool alike = random.oneIn(2);
        for (std::uint64_t i = 0; i < repeat; ++i) {
            for (const Pattern& one : body)
                write(one, static_cast<std::int32_t>(i % kLayers));
            if (!alike && random.oneIn(3))
                write(pattern(1 + 2 * length));
        }
    };
    const std::uint64_t segments = 1 + random.below(3);
    for (std::uint64_t s = 0; s < segments; ++s) {
        builder.beginSegment("segment", random.oneIn(2) ? 1 : static_cast<std::int64_t>(1 + random.below(30)));
        begin = builder.op(OpKind::Allocate, Stream::Compute, Phase::Forward);
        for (std::uint64_t i = 0; i < 1 + random.below(3); ++i) {
            if (random.oneIn(2))
                write(pattern(30));
            layers();
        }
        if (random.oneIn(2))
            continue;
        builder.op(OpKind::Release, Stream::Compute, Phase::Forward); // all come together
        const OpId join = builder.lastOp();
        for (OpId back = 1; back < 12 && join - back > begin; ++back)
            builder.wait(join - back);
        builder.op(OpKind::Release, Stream::Compute, Phase::Forward);
        builder.blockHost(join);
    }
    result.schedule = builder.finish();
    return result;
}

RC_GTEST_PROP(TimeFormProperty, EqualsTheSimulationOfRandomLayers, ())
{
    const auto seed = *rc::gen::inRange<std::uint64_t>(0, 10'000'000);
    const Costed costed = randomLayers(seed);
    TimeForm form(costed.schedule, std::vector<int>(kLayers, 0));
    const double simulated = simulate(costed.schedule, costed.opTimes()).seconds;
    const std::vector<SlotTime> times = costed.slotTimes(form);
    RC_ASSERT(std::abs(form.seconds(times) - simulated) <= 1e-9 * simulated);
    RC_ASSERT(form.lowerBound(times, form.repeats()) <= simulated);
}

/// Every framework's own schedules, under times that have nothing to do with any machine.
RC_GTEST_PROP(TimeFormProperty, EqualsTheSimulationOfEveryFramework, ())
{
    static const auto strategies = [] {
        auto list = everyStrategy();
        list.insert(list.end(), everyDeepSpeed().begin(), everyDeepSpeed().end());
        for (const std::string& name : strategyNames())
            if (name.rfind("megatron", 0) != 0) // cut into slices first
                list.emplace_back(name, strategyByName(name, 4)->options);
        return list;
    }();
    const auto& [name, options] = *rc::gen::elementOf(strategies);
    RC_TAG(name);
    SmallInput small(options);
    small.model = llamaOf({16, *rc::gen::inRange(1, 24), 2, 8, 24, 20, *rc::gen::arbitrary<bool>()});
    small.cluster.gpusPerNode = *rc::gen::element(2, 4);
    small.cluster.nodes = *rc::gen::inRange(1, 3);
    small.training.gradientAccumulation = *rc::gen::inRange(1, 9);
    small.training.checkpointing = *rc::gen::element(Checkpointing::None, Checkpointing::Full, Checkpointing::Cpu);
    if (small.training.checkpointing == Checkpointing::Full)
        small.training.checkpointSegment = *rc::gen::inRange(1, 5);
    RC_PRE(refusals(small.input()).empty());
    const auto rules = small.rules();
    Costed costed;
    costed.schedule = rules->emit();
    const std::vector<int> classes = small.model.layers;
    TimeForm form(costed.schedule, classes);

    // A time for each slot; the simulation gets them by finding each operation's slot again.
    Random random(*rc::gen::inRange<std::uint64_t>(0, 10'000'000));
    std::map<std::tuple<OpKind, Stream, Phase, PayloadId, GroupId, int, int, int, int>, SlotTime> known;
    const double host = random.oneIn(2) ? 1.0 : 0.02;
    const auto timeOf = [&](const Op& op) {
        if (op.kind == OpKind::Allocate || op.kind == OpKind::Release)
            return SlotTime{};
        const int layer = op.layer < 0 ? -1 : classes[static_cast<std::size_t>(op.layer)];
        const auto [at, fresh] = known.try_emplace(
            {op.kind, op.stream, op.phase, op.payload, op.group, op.payloadCount, op.firstPart, op.endPart, layer});
        if (fresh)
            at->second = {random.seconds(), random.seconds() * host};
        return at->second;
    };
    OpTimes times;
    for (const Op& op : costed.schedule.ops) {
        const SlotTime time = op.phase == Phase::Init ? SlotTime{} : timeOf(op);
        times.seconds.push_back(time.seconds);
        times.hostSeconds.push_back(time.hostSeconds);
    }
    std::vector<SlotTime> slots;
    for (const Op& op : form.slots())
        slots.push_back(timeOf(op));
    const Timeline timeline = simulate(costed.schedule, times);
    RC_ASSERT(std::abs(form.seconds(slots) - timeline.seconds) <= 1e-9 * timeline.seconds);
    RC_ASSERT(form.lowerBound(slots, form.repeats()) <= timeline.seconds);
    RC_ASSERT(std::abs(timeline.breakdown.total() - timeline.seconds) <= 1e-9 * timeline.seconds);
}

} // namespace
} // namespace shardwright
