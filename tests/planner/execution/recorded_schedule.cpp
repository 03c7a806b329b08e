#include "tests/planner/execution/recorded_schedule.hpp"

#include <algorithm>
#include <cmath>

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"
#include "tests/planner/execution/recorded_transfers.hpp"

namespace shardwright {

namespace {

constexpr double kClipped = 0.5; // what Clip scales by

class Player {
public:
    explicit Player(const RecordedSchedule& recorded)
        : m_recorded(recorded), m_schedule(recorded.schedule),
          m_buffers(recorded.schedule, recorded.model, recorded.training.optimizer, recorded.ranks),
          m_transfers(m_buffers, m_problems),
          m_activations(recorded.model, recorded.training, computeDtype(recorded.training.precision)),
          m_index(recorded.model)
    {
    }

    std::vector<std::string> run()
    {
        if (!m_schedule.executable())
            return {"nothing is recorded"};
        checkSizes();
        play(m_schedule.segments.front());
        for (m_step = 0; m_step < m_recorded.steps && m_problems.none(); ++m_step)
            playStep();
        return m_problems.texts();
    }

private:
    double parameterAt(std::int64_t element, int step) const { return static_cast<double>(element % 89 + 100 * step); }

    void checkSizes()
    {
        for (BufferId id = 0; id < static_cast<BufferId>(m_schedule.buffers.size()); ++id) {
            const Content* content = m_buffers.contentOf(id);
            if (content == nullptr) {
                if (m_schedule.buffers[static_cast<std::size_t>(id)] >=
                    static_cast<BufferClassId>(m_recorded.layerClasses))
                    m_problems.add("{} has no content", m_buffers.nameOf(id));
            } else if (const Bytes bytes = m_buffers.bytesOf(*content); bytes != m_buffers.classOf(id).bytes) {
                m_problems.add("{} holds {} bytes, its class says {}", m_buffers.nameOf(id), bytes.count(),
                               m_buffers.classOf(id).bytes.count());
            }
        }
    }

    void playStep()
    {
        const std::set<BufferId> before = m_buffers.liveIds();
        m_expected.assign(m_buffers.elements(), 0);
        m_updated.assign(static_cast<std::size_t>(m_recorded.ranks), std::vector<int>(m_buffers.elements(), 0));
        for (std::size_t i = 1; i < m_schedule.segments.size() && m_problems.none(); ++i) {
            const Segment& segment = m_schedule.segments[i];
            for (std::int64_t repetition = 0; repetition < segment.repeat && m_problems.none(); ++repetition) {
                const std::set<BufferId> found = m_buffers.liveIds();
                play(segment);
                if (repetition + 1 < segment.repeat)
                    pairUp(found);
            }
        }
        if (!m_problems.none())
            return;
        m_problems.setPlace(fmt::format("end of step {}: ", m_step));
        pairUp(before);
        checkStep();
    }
    /// What was made anew takes the place of what went.
    void pairUp(const std::set<BufferId>& found)
    {
        std::vector<BufferId> made;
        for (const auto& [id, buffer] : m_buffers.live())
            if (found.count(id) == 0)
                made.push_back(id);
        for (const BufferId gone : found) {
            if (m_buffers.isLive(gone))
                continue;
            const auto like = std::find_if(made.begin(), made.end(), [&](BufferId id) {
                return &m_buffers.classOf(id) == &m_buffers.classOf(gone) &&
                       m_buffers.contentIdOf(id) == m_buffers.contentIdOf(gone);
            });
            if (like == made.end()) {
                m_problems.add("{} is gone at the end of the repetition and nothing replaces it",
                               m_buffers.nameOf(gone));
                continue;
            }
            m_buffers.rename(*like, gone);
            made.erase(like);
        }
        for (const BufferId extra : made)
            m_problems.add("{} is left over at the end of the repetition", m_buffers.nameOf(extra));
    }

    void play(const Segment& segment)
    {
        for (m_op = static_cast<OpId>(segment.firstOp); m_op < static_cast<OpId>(segment.endOp); ++m_op) {
            const Op& op = m_schedule.ops[static_cast<std::size_t>(m_op)];
            m_problems.setPlace(fmt::format("step {}, op {} ({}, {}, layer {}): ", m_step, m_op, nameOf(op.kind),
                                            nameOf(op.phase), op.layer));
            m_transfers.takeMoved();
            std::uint32_t event = 0;
            for (std::uint32_t i = 0; i < op.actionCount; ++i) {
                const Action& action = m_schedule.actions[op.firstAction + i];
                for (; event < action.eventsBefore; ++event)
                    happen(m_schedule.events[op.firstEvent + event]);
                act(action);
                if (m_problems.full())
                    return;
            }
            for (; event < op.eventCount; ++event)
                happen(m_schedule.events[op.firstEvent + event]);
            checkPayload(op);
        }
    }
    void happen(const BufferEvent& event)
    {
        if (event.change == BufferChange::Reclaim)
            return;
        if (event.change != BufferChange::Allocate) {
            if (!m_buffers.drop(event.buffer))
                m_problems.add("{} is freed and is not live", m_buffers.nameOf(event.buffer));
            return;
        }
        if (m_buffers.isLive(event.buffer))
            m_problems.add("{} is made and is live already", m_buffers.nameOf(event.buffer));
        m_buffers.make(event.buffer);
    }
    void checkPayload(const Op& op)
    {
        const bool counts = (isCollective(op.kind) && op.group >= 0 && m_buffers.groupAt(op.group).ranks > 1) ||
                            op.kind == OpKind::CopyToDevice || op.kind == OpKind::CopyToHost;
        if (!counts || op.payload < 0)
            return;
        const Payload& payload = m_schedule.sizes.payloads[static_cast<std::size_t>(op.payload)];
        const Bytes planned = payload.bytes * op.payloadCount;
        if (const Bytes moved = m_transfers.takeMoved(); planned != moved)
            m_problems.add("{} of {}: {} bytes planned, {} moved", nameOf(op.kind), payload.name, planned.count(),
                           moved.count());
    }

    void act(const Action& action)
    {
        const auto first = m_schedule.operands.begin() + action.firstOperand;
        const std::vector<BufferId> reads(first, first + action.reads);
        const std::vector<BufferId> writes(first + action.reads, first + action.reads + action.writes);
        for (const std::vector<BufferId>* operands : {&reads, &writes})
            for (const BufferId buffer : *operands)
                if (!m_buffers.isLive(buffer)) {
                    m_problems.add("{} uses {}, which is not live", nameOf(action.verb), m_buffers.nameOf(buffer));
                    return;
                }
        for (const BufferId buffer : reads)
            if (!m_buffers.at(buffer).written)
                m_problems.add("{} reads {}, which was never written", nameOf(action.verb), m_buffers.nameOf(buffer));
        if (action.verb == Verb::Hold) {
            for (const BufferId buffer : writes)
                m_buffers.hold(buffer, action.content);
            return;
        }
        if (!m_transfers.act(action, m_schedule.ops[static_cast<std::size_t>(m_op)], reads, writes))
            actOnRank(action, reads, writes);
        for (const BufferId buffer : writes) {
            m_buffers.at(buffer).written = true;
            m_buffers.at(buffer).stamp = ++m_clock;
        }
    }
    void actOnRank(const Action& action, const std::vector<BufferId>& reads, const std::vector<BufferId>& writes)
    {
        switch (action.verb) {
        case Verb::Initialize: initialise(writes); break;
        case Verb::Clip: clip(action, reads.empty() ? writes : reads, writes); break;
        case Verb::Update: update(reads, writes); break;
        case Verb::Compute: compute(action); break;
        case Verb::LoadBatch: break;
        default: m_problems.add("{} is not known here", nameOf(action.verb));
        }
    }

    void initialise(const std::vector<BufferId>& writes)
    {
        for (const BufferId buffer : writes)
            for (std::int64_t rank = 0; rank < m_recorded.ranks; ++rank)
                for (const auto& [element, at] : m_buffers.elementsOn(buffer, rank))
                    m_buffers.valuesOf(buffer, rank)[at] =
                        m_buffers.contentOf(buffer)->quantity == Quantity::Parameters ? parameterAt(element, 0) : 0;
    }

    /// Scales `writes` by the norm of `normed`, which is to count every element once.
    void clip(const Action& action, const std::vector<BufferId>& normed, const std::vector<BufferId>& writes)
    {
        std::vector<int> counted(m_buffers.elements(), 0);
        const std::vector<std::int64_t> ranks =
            action.group < 0 ? std::vector<std::int64_t>{0} : m_buffers.members(action.group, 0);
        for (const std::int64_t rank : ranks)
            for (const BufferId buffer : normed)
                for (const auto& [element, at] : m_buffers.elementsOn(buffer, rank))
                    if (!std::isnan(m_buffers.valuesOf(buffer, rank)[at]))
                        ++counted[static_cast<std::size_t>(element)];
        for (const BufferId buffer : writes)
            for (std::int64_t rank = 0; rank < m_recorded.ranks; ++rank)
                for (const auto& [element, at] : m_buffers.elementsOn(buffer, rank))
                    m_buffers.valuesOf(buffer, rank)[at] *= kClipped;
        for (std::size_t i = 0; i < m_buffers.elements(); ++i)
            if (counted[i] != 1) {
                m_problems.add("element {} counts {} times in the norm", i, counted[i]);
                return;
            }
    }

    void update(const std::vector<BufferId>& reads, const std::vector<BufferId>& writes)
    {
        const double factor = m_recorded.training.gradientClipping ? kClipped : 1;
        for (std::int64_t rank = 0; rank < m_recorded.ranks; ++rank) {
            Values gradient(m_buffers.elements(), kVoid);
            std::vector<bool> stepped(m_buffers.elements(), false);
            // A whole gradient steps what the rank has of the parameters.
            std::vector<bool> has(m_buffers.elements(), false);
            for (const BufferId write : writes)
                if (m_buffers.contentOf(write)->quantity == Quantity::Parameters)
                    for (const auto& [element, at] : m_buffers.elementsOn(write, rank))
                        has[static_cast<std::size_t>(element)] = true;
            for (const BufferId read : reads)
                for (const auto& [element, at] : m_buffers.elementsOn(read, rank)) {
                    const auto index = static_cast<std::size_t>(element);
                    if (!has[index])
                        continue;
                    const double expected = m_expected[index] * factor;
                    const double value = m_buffers.valuesOf(read, rank)[at];
                    if (!(std::abs(value - expected) <= 1e-9 * std::abs(expected))) {
                        m_problems.add("rank {}: gradient of element {} in {} is {}, not {}", rank, element,
                                       m_buffers.nameOf(read), value, expected);
                        return;
                    }
                    stepped[index] = true;
                    ++m_updated[static_cast<std::size_t>(rank)][index];
                }
            checkWritten(rank, stepped, writes);
        }
    }
    void checkWritten(std::int64_t rank, const std::vector<bool>& stepped, const std::vector<BufferId>& writes)
    {
        std::vector<int> parameters(m_buffers.elements(), 0);
        std::vector<int> moments(m_buffers.elements(), 0);
        for (const BufferId write : writes) {
            const bool moment = m_buffers.contentOf(write)->quantity == Quantity::Moments;
            for (const auto& [element, at] : m_buffers.elementsOn(write, rank)) {
                const auto index = static_cast<std::size_t>(element);
                if (!stepped[index])
                    continue;
                double& value = m_buffers.valuesOf(write, rank)[at];
                if (value != (moment ? m_step : parameterAt(element, m_step)))
                    m_problems.add("rank {}: {} is stepped from {} at element {}", rank, m_buffers.nameOf(write), value,
                                   element);
                value = moment ? m_step + 1 : parameterAt(element, m_step + 1);
                ++(moment ? moments : parameters)[index];
            }
        }
        const int wanted = m_buffers.moments() > 0 ? 1 : 0;
        for (std::size_t i = 0; i < m_buffers.elements(); ++i)
            if (stepped[i] && (parameters[i] != 1 || moments[i] != wanted)) {
                m_problems.add("rank {}: element {} has a gradient, {} parameters and {} moments", rank, i,
                               parameters[i], moments[i]);
                return;
            }
    }

    void compute(const Action& action)
    {
        if (action.module < 0)
            return;
        const int type = m_recorded.model.layers[static_cast<std::size_t>(action.layer)];
        const LeafModule& module = m_activations.modules(type)[static_cast<std::size_t>(action.module)];
        std::vector<BufferId> made;
        for (const int parameter : module.parameters) {
            const std::int32_t tensor =
                m_index.at(static_cast<std::size_t>(action.layer), static_cast<std::size_t>(parameter));
            for (std::int64_t rank = 0; rank < m_recorded.ranks; ++rank)
                checkWeights(tensor, rank);
            if (action.gradient >= 0) {
                const BufferId into = gradientPlace(tensor, action.gradient);
                makeGradient(tensor, into);
                made.push_back(into);
            }
        }
        for (const BufferId buffer : made)
            if (m_buffers.isLive(buffer))
                m_buffers.at(buffer).written = true;
    }
    /// `named`, where it holds the tensor whole; else the buffer of gradients that does and that nothing has written.
    BufferId gradientPlace(std::int32_t tensor, BufferId named)
    {
        const auto holds = [&](BufferId id) {
            const Content* content = m_buffers.contentOf(id);
            return content != nullptr && content->quantity == Quantity::Gradients &&
                   m_buffers.wholeAt(tensor, id, 0) >= 0;
        };
        if (!m_buffers.isLive(named) || holds(named))
            return named;
        std::vector<BufferId> places;
        for (const auto& [id, buffer] : m_buffers.live())
            if (!buffer.written && holds(id))
                places.push_back(id);
        return places.size() == 1 ? places.front() : named;
    }
    void checkWeights(std::int32_t tensor, std::int64_t rank)
    {
        BufferId newest = -1;
        for (const auto& [id, buffer] : m_buffers.live()) {
            const Content* content = m_buffers.contentOf(id);
            if (content == nullptr || content->quantity != Quantity::Parameters || content->codec != Codec::None ||
                content->dtype != m_activations.compute() || m_buffers.classOf(id).spec->place != Place::Gpu ||
                !buffer.written || m_buffers.wholeAt(tensor, id, rank) < 0)
                continue;
            if (newest < 0 || buffer.stamp > m_buffers.at(newest).stamp)
                newest = id;
        }
        const NamedParameter& parameter = m_buffers.parameters()[static_cast<std::size_t>(tensor)];
        if (newest < 0) {
            m_problems.add("no live whole copy of {}", parameter.name);
            return;
        }
        const std::int64_t at = m_buffers.wholeAt(tensor, newest, rank);
        for (std::int64_t i = 0; i < parameter.numel; ++i) {
            const double value = m_buffers.valuesOf(newest, rank)[static_cast<std::size_t>(at + i)];
            const double expected = parameterAt(m_buffers.firstElement(tensor) + i, m_step);
            if (value != expected) {
                m_problems.add("rank {}: {} has {} at {} in {}, not {}", rank, parameter.name, value, i,
                               m_buffers.nameOf(newest), expected);
                return;
            }
        }
    }
    void makeGradient(std::int32_t tensor, BufferId buffer)
    {
        if (!m_buffers.isLive(buffer) || m_buffers.contentOf(buffer) == nullptr ||
            m_buffers.wholeAt(tensor, buffer, 0) < 0) {
            m_problems.add("no place for the gradient of {}",
                           m_buffers.parameters()[static_cast<std::size_t>(tensor)].name);
            return;
        }
        ++m_kernels;
        const std::int64_t at = m_buffers.wholeAt(tensor, buffer, 0);
        for (std::int64_t rank = 0; rank < m_recorded.ranks; ++rank)
            for (std::int64_t i = 0; i < m_buffers.parameters()[static_cast<std::size_t>(tensor)].numel; ++i) {
                const std::int64_t element = m_buffers.firstElement(tensor) + i;
                const auto value = static_cast<double>((element * 7 + rank * 13 + m_kernels * 31) % 101 + 1);
                m_buffers.valuesOf(buffer, rank)[static_cast<std::size_t>(at + i)] = value;
                m_expected[static_cast<std::size_t>(element)] += value / static_cast<double>(m_recorded.ranks);
            }
    }

    // ---- the end of a step

    void checkStep()
    {
        std::vector<int> anywhere(m_buffers.elements(), 0);
        for (std::int64_t rank = 0; rank < m_recorded.ranks; ++rank)
            for (std::size_t i = 0; i < m_buffers.elements(); ++i) {
                const int times = m_updated[static_cast<std::size_t>(rank)][i];
                anywhere[i] += times;
                if (times > 1) {
                    m_problems.add("rank {} updates element {} {} times", rank, i, times);
                    return;
                }
            }
        for (std::size_t i = 0; i < m_buffers.elements(); ++i)
            if (anywhere[i] == 0) {
                m_problems.add("nobody updates element {}", i);
                return;
            }
        for (const auto& [id, buffer] : m_buffers.live()) {
            const Content* content = m_buffers.contentOf(id);
            if (content == nullptr || content->quantity != Quantity::Parameters)
                continue;
            for (std::int64_t rank = 0; rank < m_recorded.ranks; ++rank)
                for (const auto& [element, at] : m_buffers.elementsOn(id, rank))
                    if (buffer.ofRank[static_cast<std::size_t>(rank)][at] != parameterAt(element, m_step + 1)) {
                        m_problems.add("rank {}: after the step {} has an old element {}", rank, m_buffers.nameOf(id),
                                       element);
                        return;
                    }
        }
    }

    const RecordedSchedule& m_recorded;
    const Schedule& m_schedule;
    Problems m_problems;
    RecordedBuffers m_buffers;
    RecordedTransfers m_transfers;
    ActivationModel m_activations;
    TensorIndex m_index;
    Values m_expected;                       // gradients of the step, by element
    std::vector<std::vector<int>> m_updated; // by rank, by element
    OpId m_op = -1;
    int m_step = 0;
    std::int64_t m_clock = 0;
    std::int64_t m_kernels = 0;
};

} // namespace

std::vector<std::string> problemsOf(const RecordedSchedule& recorded)
{
    return Player(recorded).run();
}

std::vector<std::string> recordingProblems(const PlanInput& input)
{
    const std::unique_ptr<FrameworkRules> rules = makeRules(input);
    const Schedule schedule = rules->emit();
    const ActivationModel* activations = rules->activations();
    return problemsOf({schedule, input.model, input.training, input.ranks(),
                       activations == nullptr ? 0 : activations->classes().size()});
}

} // namespace shardwright
