// Whether a schedule says all that a simulation must know: nothing computes with parameters that are not there yet, no
// gradient is reduced before it is made, no memory is written that somebody still reads.

#include <algorithm>
#include <map>
#include <optional>

#include <gtest/gtest.h>

#include "planner/frameworks/sharding.hpp"
#include "tests/planner/frameworks/happens_before.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

/// Training setups that change which operations there are.
std::vector<SmallInput> inputsOf(const StrategyOptions& options)
{
    std::vector<SmallInput> all;
    for (const std::int64_t accumulation : {1, 3})
        for (const int segment : {0, 1, 3}) // blocks of a checkpoint; 0: none is made
            for (const bool tied : {false, true}) {
                SmallInput small(options, 4, 2);
                small.model = llamaOf({8, 4, 2, 4, 12, 10, tied});
                small.training.gradientAccumulation = accumulation;
                small.training.checkpointing = segment > 0 ? Checkpointing::Full : Checkpointing::None;
                small.training.checkpointSegment = std::max(segment, 1);
                if (refusals(small.input()).empty())
                    all.push_back(std::move(small));
            }
    return all;
}

bool computes(const Op& op)
{
    return op.kind == OpKind::Forward || op.kind == OpKind::Recompute || op.kind == OpKind::Backward;
}

bool reduces(const Op& op)
{
    return op.kind == OpKind::ReduceScatter || op.kind == OpKind::AllReduce || op.kind == OpKind::Reduce ||
           op.kind == OpKind::AllToAll;
}

class Checked {
public:
    explicit Checked(const SmallInput& small) : schedule(small.schedule()), before(schedule) {}

    std::string describe(OpId id) const
    {
        const Op& op = schedule.ops[static_cast<std::size_t>(id)];
        return std::to_string(id) + " (" + std::string(nameOf(op.kind)) + " on " + std::string(nameOf(op.stream)) +
               ", layer " + std::to_string(op.layer) + ", " + std::string(nameOf(op.phase)) + ")";
    }
    void expect(OpId earlier, OpId later, std::string_view why) const
    {
        EXPECT_TRUE(before(earlier, later))
            << describe(earlier) << " is not over before " << describe(later) << ": " << why;
    }
    const BufferClass& classOf(BufferId buffer) const
    {
        return schedule.sizes.buffers[static_cast<std::size_t>(schedule.buffers[static_cast<std::size_t>(buffer)])];
    }
    /// Calls visit(op id, op, event) for every event of the steady step, and visit(op id, op, nothing) after each op.
    template <typename Visit> void walk(Visit visit) const
    {
        for (std::size_t s = 1; s < schedule.segments.size(); ++s)
            for (std::uint32_t id = schedule.segments[s].firstOp; id < schedule.segments[s].endOp; ++id) {
                const Op& op = schedule.ops[id];
                for (std::uint32_t i = 0; i < op.eventCount; ++i)
                    visit(static_cast<OpId>(id), op, std::optional(schedule.events[op.firstEvent + i]));
                visit(static_cast<OpId>(id), op, std::optional<BufferEvent>());
            }
    }

    Schedule schedule;
    HappensBefore before;
};

template <typename Check> void forEverySchedule(Check check)
{
    std::vector<std::pair<std::string, StrategyOptions>> strategies = everyStrategy();
    strategies.insert(strategies.end(), everyDeepSpeed().begin(), everyDeepSpeed().end());
    for (const auto& [name, options] : strategies)
        for (const SmallInput& small : inputsOf(options)) {
            SCOPED_TRACE(name + ", accumulation " + std::to_string(small.training.gradientAccumulation) +
                         (small.training.checkpointing == Checkpointing::Full
                              ? ", checkpointed by " + std::to_string(small.training.checkpointSegment)
                              : "") +
                         (small.model.architecture.tiedEmbedding ? ", tied" : ""));
            check(Checked(small), small);
        }
}

TEST(ScheduleOrder, WaitsPointBackAndRepeatedStepsWaitWithinThemselves)
{
    forEverySchedule([](const Checked& checked, const SmallInput&) {
        for (const Segment& segment : checked.schedule.segments)
            for (std::uint32_t id = segment.firstOp; id < segment.endOp; ++id) {
                const Op& op = checked.schedule.ops[id];
                for (std::uint32_t i = 0; i < op.waitCount; ++i) {
                    const Wait& wait = checked.schedule.waits[op.firstWait + i];
                    EXPECT_LT(wait.op, static_cast<OpId>(id));
                    EXPECT_GE(wait.op, static_cast<OpId>(checked.schedule.segments.front().endOp));
                    if (segment.name == kMiddleMicroSteps) {
                        EXPECT_GE(wait.op, static_cast<OpId>(segment.firstOp)) << checked.describe(wait.op);
                    }
                }
            }
    });
}

/// Follows which layer each gathered buffer belongs to: gathers of one layer type come in the order of the pass.
class Holders {
public:
    Holders(const Model& model, const Checked& checked) : m_model(model), m_checked(checked) {}

    struct Holder {
        BufferId buffer = -1;
        OpId gather = -1; // that fills it
    };

    /// The layer that `buffer`, allocated in `phase`, is gathered for.
    std::optional<int> layerOf(BufferId buffer, Phase phase)
    {
        const int type = m_checked.classOf(buffer).layerType;
        if (type < 0)
            return std::nullopt;
        const bool forward = phase == Phase::Forward;
        const int layers = static_cast<int>(m_model.layers.size());
        for (int i = 0; i < layers; ++i) {
            const int layer = forward ? i : layers - 1 - i;
            if (m_model.layers[static_cast<std::size_t>(layer)] != type || m_holders.count(layer) > 0)
                continue;
            const auto last = m_last.find(type);
            if (last != m_last.end() && (forward ? layer <= last->second : layer >= last->second))
                continue;
            m_last[type] = layer;
            return layer;
        }
        return std::nullopt;
    }
    void turn() { m_last.clear(); }
    void hold(int layer, Holder holder) { m_holders[layer] = holder; }
    void drop(BufferId buffer)
    {
        for (auto it = m_holders.begin(); it != m_holders.end(); ++it)
            if (it->second.buffer == buffer) {
                m_holders.erase(it);
                return;
            }
    }
    const Holder* of(int layer) const
    {
        const auto known = m_holders.find(layer);
        return known == m_holders.end() ? nullptr : &known->second;
    }

private:
    const Model& m_model;
    const Checked& m_checked;
    std::map<int, Holder> m_holders; // by layer
    std::map<int, int> m_last;       // by layer type, in this pass: the last layer that was gathered for
};

/// Buffers of whole units, one of which serves one layer; DeepSpeed gathers tensor by tensor.
bool holdsUnit(const BufferClass& buffers)
{
    return buffers.spec->category == Category::GatheredParameters && buffers.spec->lifetime == Lifetime::Transient &&
           buffers.spec->place == Place::Gpu && buffers.layerType >= 0 && buffers.bytes > Bytes(0);
}

TEST(ScheduleOrder, LayersComputeWithParametersThatHaveArrived)
{
    std::map<std::string, int> checkedUses;
    forEverySchedule([&](const Checked& checked, const SmallInput& small) {
        const auto* first = std::get_if<Fsdp1Options>(&small.strategy.options);
        if (first != nullptr && first->wrap == WrapPolicy::Size)
            return; // units within a layer
        Holders holders(small.model, checked);
        int uses = 0;
        std::optional<Phase> phase;
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (!event) {
                const Holders::Holder* holder = computes(op) ? holders.of(op.layer) : nullptr;
                if (holder == nullptr)
                    return;
                ++uses;
                checked.expect(holder->gather, id, "it fills the parameters that are computed with");
                return;
            }
            if (event->change != BufferChange::Allocate) {
                holders.drop(event->buffer);
                return;
            }
            if (!holdsUnit(checked.classOf(event->buffer)))
                return;
            if (phase != op.phase)
                holders.turn();
            phase = op.phase;
            if (const auto layer = holders.layerOf(event->buffer, op.phase))
                holders.hold(*layer, {event->buffer, id});
        });
        checkedUses[frameworkOf(small.strategy).data()] += uses;
    });
    for (const char* framework : {"fsdp1", "fsdp2", "native"})
        EXPECT_GT(checkedUses[framework], 100) << framework;
}

/// ZeRO-3 gathers tensor by tensor: whatever handle has been waited for when a layer is issued is over when it begins,
/// each gather's handle is waited for, and parameters are let go of only after they have come.
TEST(ScheduleOrder, HandlesOfZero3AreWaitedForBeforeTheLayersThatFollow)
{
    int handles = 0;
    forEverySchedule([&](const Checked& checked, const SmallInput& small) {
        const auto* options = std::get_if<DeepSpeedOptions>(&small.strategy.options);
        if (options == nullptr || options->stage != 3)
            return;
        std::vector<OpId> gathers; // not yet waited for
        OpId waited = -1;
        std::map<BufferId, OpId> made;
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (event) {
                const BufferSpec& spec = *checked.classOf(event->buffer).spec;
                if (spec.category != Category::GatheredParameters)
                    return;
                if (event->change == BufferChange::Allocate)
                    made[event->buffer] = id;
                else if (op.stream == Stream::Compute && made.count(event->buffer) > 0)
                    checked.expect(made[event->buffer], id, "it fills what is let go of");
                return;
            }
            for (std::uint32_t i = 0; i < op.waitCount; ++i) {
                const auto gather =
                    std::find(gathers.begin(), gathers.end(), checked.schedule.waits[op.firstWait + i].op);
                if (gather == gathers.end() || isCollective(op.kind)) // a communicator taking turns
                    continue;
                ++handles;
                waited = *gather;
                gathers.erase(gather);
            }
            if (op.kind == OpKind::AllGather)
                gathers.push_back(id);
            if (computes(op) && waited >= 0)
                checked.expect(waited, id, "its handle was waited for before");
        });
        EXPECT_TRUE(gathers.empty()) << gathers.size() << " gathers that nobody waits for";
    });
    EXPECT_GT(handles, 1000);
}

/// What FSDP2 copies parameters out of: filled by the all-gather after its allocation, read by the copy that makes the
/// unit's parameters.
TEST(ScheduleOrder, ParametersAreCopiedOutOfFinishedGathersWhoseOutputIsNotOverwritten)
{
    int copies = 0;
    forEverySchedule([&](const Checked& checked, const SmallInput& small) {
        if (frameworkOf(small.strategy) != "fsdp2")
            return;
        struct Output {
            OpId gather = -1;
            OpId read = -1;
        };
        std::vector<std::pair<BufferId, Output>> outputs; // in order of issue, which is that of use
        std::vector<OpId> reads;                          // of outputs that are gone
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (!event) {
                if (op.kind == OpKind::AllGather && !outputs.empty() && outputs.back().second.gather < 0)
                    outputs.back().second.gather = id;
                return;
            }
            const std::string_view name = checked.classOf(event->buffer).spec->name;
            if (name == "all-gather output of a unit" && event->change == BufferChange::Allocate) {
                for (const OpId read : reads)
                    checked.expect(read, id, "it reads memory that is given to the next gather");
                outputs.push_back({event->buffer, {}});
            } else if (name == "all-gather output of a unit") {
                const auto gone = std::find_if(outputs.begin(), outputs.end(),
                                               [&](const auto& output) { return output.first == event->buffer; });
                ASSERT_NE(gone, outputs.end());
                if (gone->second.read >= 0)
                    reads.push_back(gone->second.read);
                outputs.erase(gone);
            } else if (name == "unsharded parameters of a unit" && event->change == BufferChange::Allocate) {
                const auto next = std::find_if(outputs.begin(), outputs.end(),
                                               [](const auto& output) { return output.second.read < 0; });
                if (next == outputs.end())
                    return; // a single rank gathers nothing
                ++copies;
                next->second.read = id;
                checked.expect(next->second.gather, id, "it fills what is copied out");
            }
        });
    });
    EXPECT_GT(copies, 100);
}

TEST(ScheduleOrder, ReductionsFollowTheBackwardThatMadeTheirGradients)
{
    int reductions = 0;
    forEverySchedule([&](const Checked& checked, const SmallInput&) {
        OpId backward = -1;
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (event)
                return;
            if (op.kind == OpKind::Backward)
                backward = id;
            if (!reduces(op) || op.phase != Phase::Backward)
                return;
            ++reductions;
            ASSERT_GE(backward, 0);
            checked.expect(backward, id, "it makes gradients that are reduced");
        });
    });
    EXPECT_GT(reductions, 1000);
}

TEST(ScheduleOrder, TheOptimizerStepsOnFinishedGradients)
{
    forEverySchedule([](const Checked& checked, const SmallInput&) {
        std::vector<OpId> gradients;
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (event)
                return;
            const bool download = op.kind == OpKind::CopyToHost;
            if (op.phase == Phase::Backward && (reduces(op) || download || op.kind == OpKind::Backward))
                gradients.push_back(id);
            if (op.kind == OpKind::HostOptimizerStep && op.phase == Phase::Optimizer && download)
                gradients.push_back(id);
            if (op.kind != OpKind::OptimizerStep && op.kind != OpKind::HostOptimizerStep)
                return;
            for (const OpId gradient : gradients)
                checked.expect(gradient, id, "the optimizer needs its result");
        });
    });
}

/// The next step begins on the compute stream, and gathers and uploads wait for it there.
TEST(ScheduleOrder, TheNextStepFindsUpdatedParameters)
{
    forEverySchedule([](const Checked& checked, const SmallInput&) {
        OpId last = -1;
        for (std::size_t id = 0; id < checked.schedule.ops.size(); ++id)
            if (checked.schedule.ops[id].stream == Stream::Compute)
                last = static_cast<OpId>(id);
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (!event && id < last && (op.phase == Phase::Optimizer || op.phase == Phase::AfterStep))
                checked.expect(id, last, "it updates what the next step reads");
            EXPECT_TRUE(event || op.phase != Phase::AfterStep || id <= last) << checked.describe(id);
        });
    });
}

TEST(ScheduleOrder, RecomputationFindsTheCheckpointThatTheHostKept)
{
    int copies = 0;
    for (const auto& [name, options] : everyDeepSpeed()) {
        SmallInput small(options, 4, 2);
        small.training.checkpointing = Checkpointing::Cpu;
        if (!refusals(small.input()).empty())
            continue;
        SCOPED_TRACE(name);
        const Checked checked(small);
        std::map<int, OpId> forward; // by layer
        std::map<int, OpId> up;
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (event)
                return;
            if (op.kind == OpKind::Forward)
                forward[op.layer] = id;
            if (op.kind == OpKind::CopyToHost && op.stream == Stream::DeviceToHost && op.phase == Phase::Forward)
                checked.expect(forward[op.layer], id, "it reads what is copied");
            // The upload of a checkpoint is the layer's last before its recomputation.
            if (op.kind == OpKind::CopyToDevice && op.stream == Stream::HostToDevice && op.phase == Phase::Backward)
                up[op.layer] = id;
            if (op.kind != OpKind::Recompute || up.count(op.layer) == 0)
                return;
            ++copies;
            checked.expect(up[op.layer], id, "it brings the input back");
        });
    }
    EXPECT_GT(copies, 50);
}

/// The allocator's rule: memory that another stream used is handed out again only when that use is over. FSDP1's rate
/// limiter makes the host wait for that; elsewhere the allocator asks, and takes other memory.
TEST(ScheduleOrder, TheRateLimiterWaitsForTheMemoryThatItReuses)
{
    int limited = 0;
    forEverySchedule([&](const Checked& checked, const SmallInput&) {
        std::map<BufferId, OpId> letGo;
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (!event || checked.classOf(event->buffer).spec->category != Category::GatheredParameters)
                return;
            if (event->change == BufferChange::FreeDeferred)
                letGo[event->buffer] = id;
            if (event->change != BufferChange::Reclaim)
                return;
            ASSERT_EQ(letGo.count(event->buffer), 1U);
            checked.expect(letGo[event->buffer], id, "it still uses the parameters");
            limited += op.kind == OpKind::AllGather ? 1 : 0;
        });
    });
    EXPECT_GT(limited, 50);
}

/// Communication buffers and gradients are not given away while a collective reads or writes them.
TEST(ScheduleOrder, BuffersOutliveTheCollectivesThatUseThem)
{
    int buffers = 0;
    forEverySchedule([&](const Checked& checked, const SmallInput&) {
        std::map<BufferId, OpId> made;
        std::map<BufferId, OpId> readBy;
        checked.walk([&](OpId id, const Op& op, const std::optional<BufferEvent>& event) {
            if (!event) {
                if (op.stream == Stream::Reduce)
                    for (const auto& [buffer, from] : made)
                        if (readBy.count(buffer) == 0 && from < id)
                            readBy[buffer] = id;
                return;
            }
            const BufferSpec& spec = *checked.classOf(event->buffer).spec;
            if (spec.place != Place::Gpu || spec.name != "reduce-scatter input of a unit")
                return;
            if (event->change == BufferChange::Allocate) {
                made[event->buffer] = id;
                return;
            }
            ++buffers;
            ASSERT_EQ(readBy.count(event->buffer), 1U) << spec.name;
            checked.expect(readBy[event->buffer], id, spec.name);
        });
    });
    EXPECT_GT(buffers, 50);
}

} // namespace
} // namespace shardwright
