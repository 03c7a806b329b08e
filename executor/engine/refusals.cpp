// What the executor cannot carry out, by name, before anything runs.

#include <map>
#include <string>

#include <fmt/format.h>

#include "executor/engine/optimizer.hpp"
#include "executor/engine/rank_executor.hpp"

namespace shardwright {

namespace {

/// How many operands an action of this verb needs to mean something.
struct Operands {
    bool reads = false;
    bool writes = true;
    bool contents = false; // of every operand
    bool group = false;
    bool content = false;
};

Operands needsOf(Verb verb)
{
    switch (verb) {
    case Verb::Move:
    case Verb::Add: return {.reads = true};
    case Verb::ReduceScatter: return {.reads = true, .contents = true, .group = true};
    case Verb::AllGather:
    case Verb::AllReduce:
    case Verb::Broadcast: return {.contents = true, .group = true};
    case Verb::AllToAll: return {.reads = true, .contents = true, .group = true};
    case Verb::ReduceTo: return {.contents = true, .group = true, .content = true};
    case Verb::Clip: return {.contents = true};
    case Verb::Update: return {.reads = true, .contents = true};
    case Verb::Initialize:
    case Verb::LoadBatch: return {};
    case Verb::Hold: return {.content = true};
    case Verb::Compress: return {.contents = true};
    case Verb::AverageSigns:
    case Verb::ExpandSigns: return {.reads = true, .contents = true};
    case Verb::Compute: return {.writes = false};
    }
    return {};
}

/// Operations that do something to bytes and so must say what.
bool mustAct(OpKind kind)
{
    return kind != OpKind::Allocate && kind != OpKind::Release && kind != OpKind::Copy;
}

class Refusing {
public:
    explicit Refusing(const ExecutablePlan& plan) : m_plan(plan), m_schedule(plan.schedule) {}

    std::vector<std::string> run()
    {
        if (!m_schedule.executable()) {
            add("the plan's schedule says sizes only: it was not made for shardrun (training.implementation "
                "\"shardrun\")");
            return m_refusals;
        }
        training();
        segments();
        contents();
        for (std::size_t i = 0; i < m_schedule.ops.size(); ++i)
            operation(i);
        for (const auto& [text, count] : m_silent)
            add(fmt::format("{}: {} operations do not say what they do", text, count));
        for (const std::string& text : m_wrong)
            add(text);
        return m_refusals;
    }

private:
    void add(std::string text) { m_refusals.push_back(std::move(text)); }

    void training()
    {
        for (std::string& reason : layerRefusals(m_plan.model, m_plan.training))
            add(std::move(reason));
        if (!m_plan.strategy.parallelism.none())
            add("tensor, pipeline, context and expert parallelism are not carried out");
        if (!isKnownOptimizer(m_plan.training.optimizer))
            add(fmt::format("the optimizer {} is not carried out", nameOf(m_plan.training.optimizer)));
    }

    void segments()
    {
        if (m_schedule.segments.empty() || m_schedule.segments.front().name != "initialisation")
            add("the schedule does not begin with its initialisation");
        std::int64_t batches = 0; // of a step
        for (const Segment& segment : m_schedule.segments) {
            std::int64_t loads = 0;
            for (std::uint32_t op = segment.firstOp; op < segment.endOp; ++op)
                for (std::uint32_t i = 0; i < m_schedule.ops[op].actionCount; ++i)
                    loads += m_schedule.actions[m_schedule.ops[op].firstAction + i].verb == Verb::LoadBatch ? 1 : 0;
            batches = checkedAdd(batches, checkedMultiply(loads, segment.repeat));
            if (loads == 0 && segment.repeat > 1)
                add(fmt::format("the segment \"{}\" is repeated {} times and loads no batch", segment.name,
                                segment.repeat));
        }
        if (batches != m_plan.training.gradientAccumulation)
            add(fmt::format("a step loads {} batches, but training.gradient_accumulation is {}", batches,
                            m_plan.training.gradientAccumulation));
        const std::uint32_t end = m_schedule.segments.empty() ? 0 : m_schedule.segments.back().endOp;
        if (end != m_schedule.ops.size())
            add(fmt::format("operations from {} on belong to no segment", end));
    }

    void contents()
    {
        for (std::size_t i = 0; i < m_schedule.contents.size(); ++i) {
            const Content& content = m_schedule.contents[i];
            if (bitsOf(content.dtype) < 8) // two elements a byte: pieces could begin within one
                add(fmt::format("content {}: elements of {} are not carried out", i, nameOf(content.dtype)));
            if (content.layout.parts > m_plan.ranks)
                add(fmt::format("content {}: {} parts of {} ranks", i, content.layout.parts, m_plan.ranks));
        }
    }

    void operation(std::size_t id)
    {
        const Op& op = m_schedule.ops[id];
        const bool empty =
            op.payload >= 0 && m_schedule.sizes.payloads[static_cast<std::size_t>(op.payload)].bytes == Bytes(0);
        const bool alone = op.group >= 0 && m_schedule.sizes.groups[static_cast<std::size_t>(op.group)].ranks <= 1;
        if (op.actionCount == 0 && mustAct(op.kind) && !empty && !alone && op.phase != Phase::Init)
            ++m_silent[fmt::format("{} ({})", nameOf(op.kind), nameOf(op.phase))];
        for (std::uint32_t i = 0; i < op.actionCount; ++i)
            action(id, m_schedule.actions[op.firstAction + i]);
    }

    void action(std::size_t id, const Action& action)
    {
        Operands needs = needsOf(action.verb);
        if (action.verb == Verb::ReduceScatter && action.content >= 0)
            needs.reads = false; // in place
        const auto wrong = [&](const std::string& what) {
            if (m_wrong.size() < kMostWrong)
                m_wrong.push_back(fmt::format("operation {} ({}): {} {}", id, nameOf(m_schedule.ops[id].kind),
                                              nameOf(action.verb), what));
        };
        if (needs.writes && action.writes == 0)
            wrong("writes nothing");
        const bool halves = action.verb == Verb::Update && m_plan.training.optimizer == Optimizer::OneBitAdam;
        if (needs.reads && action.reads == 0 && !halves)
            wrong("reads nothing");
        const bool pairs = (action.verb == Verb::ReduceScatter && needs.reads) || action.verb == Verb::AllToAll ||
                           (action.verb == Verb::AllGather && action.reads > 0);
        if (pairs && action.reads != action.writes)
            wrong(fmt::format("has {} reads for {} writes", action.reads, action.writes));
        if (needs.group && action.group < 0)
            wrong("names no group");
        if (needs.group && m_schedule.ops[id].group < 0)
            wrong("stands in an operation over no group");
        if (needs.content && action.content < 0)
            wrong("names no content");
        if (action.verb == Verb::ReduceTo && action.group >= 0) {
            const std::int64_t ranks = m_schedule.sizes.groups[static_cast<std::size_t>(action.group)].ranks;
            if (m_schedule.ops[id].endPart > ranks)
                wrong(fmt::format("goes to {} ranks of a group of {}", m_schedule.ops[id].endPart, ranks));
        }
        if (action.verb == Verb::Compute && action.kernel == Kernel::None)
            wrong("names no kernel");
        for (std::size_t i = 0; i < std::size_t{action.reads} + action.writes; ++i) {
            const BufferId buffer = m_schedule.operands[action.firstOperand + i];
            if (needs.contents && contentOf(buffer) < 0)
                wrong(fmt::format("works on \"{}\", which has no content", nameOfBuffer(buffer)));
        }
        if (action.verb == Verb::Move || action.verb == Verb::Add)
            move(action, wrong);
    }

    template <typename Wrong> void move(const Action& action, const Wrong& wrong) const
    {
        for (std::size_t i = 0; i < action.writes; ++i) {
            const BufferId written = m_schedule.operands[action.firstOperand + action.reads + i];
            if (contentOf(written) < 0 && i >= action.reads)
                wrong(fmt::format("has nothing that \"{}\" could take", nameOfBuffer(written)));
            for (std::size_t read = 0; read < action.reads; ++read) {
                const BufferId from = m_schedule.operands[action.firstOperand + read];
                if (contentOf(written) >= 0 && contentOf(from) < 0)
                    wrong(fmt::format("takes tensors of layers (\"{}\") for contents (\"{}\")", nameOfBuffer(from),
                                      nameOfBuffer(written)));
            }
        }
    }

    ContentId contentOf(BufferId buffer) const { return m_schedule.contentOf[static_cast<std::size_t>(buffer)]; }
    std::string_view nameOfBuffer(BufferId buffer) const
    {
        const BufferClassId id = m_schedule.buffers[static_cast<std::size_t>(buffer)];
        return m_schedule.sizes.buffers[static_cast<std::size_t>(id)].spec->name;
    }

    static constexpr std::size_t kMostWrong = 20; // one mistake repeats in every layer

    const ExecutablePlan& m_plan;
    const Schedule& m_schedule;
    std::vector<std::string> m_refusals;
    std::map<std::string, int> m_silent; // operations without actions, by kind and phase
    std::vector<std::string> m_wrong;
};

} // namespace

std::vector<std::string> executorRefusals(const ExecutablePlan& plan)
{
    return Refusing(plan).run();
}

} // namespace shardwright
