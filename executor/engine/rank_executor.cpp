#include "executor/engine/rank_executor.hpp"

#include <algorithm>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>

#include <fmt/format.h>

#include "executor/engine/arena.hpp"
#include "executor/engine/buffers.hpp"
#include "executor/engine/collectives.hpp"
#include "executor/engine/moves.hpp"
#include "executor/engine/recorder.hpp"
#include "executor/engine/residence.hpp"
#include "executor/engine/saved_state.hpp"
#include "executor/engine/sign_verbs.hpp"
#include "executor/engine/updates.hpp"
#include "executor/layers/device.hpp"

namespace shardwright {

namespace {

/// "backward of layer 3 (operation 118)": what messages call an operation.
std::string describe(const Op& op, std::size_t id)
{
    std::string text(nameOf(op.kind));
    if (op.layer >= 0)
        text += fmt::format(" of layer {}", op.layer);
    return fmt::format("{} (operation {}, {})", text, id, nameOf(op.phase));
}

/// Buffers of no bytes may say that they are there: they need no file.
bool usesNvme(const Schedule& schedule, const Shapes& shapes)
{
    for (std::size_t i = 0; i < schedule.buffers.size(); ++i)
        if (schedule.sizes.buffers[static_cast<std::size_t>(schedule.buffers[i])].spec->place == Place::Nvme &&
            shapes.buffers[i].bytes > Bytes(0))
            return true;
    return false;
}

std::unique_ptr<NvmeFiles> filesFor(const ExecutablePlan& plan, const Shapes& shapes, const ExecutorOptions& options,
                                    std::int64_t rank)
{
    if (!usesNvme(plan.schedule, shapes))
        return nullptr;
    if (options.nvmeFolder.empty())
        throw InputError("command line", "--nvme", "is missing: the plan keeps buffers on NVMe",
                         "the folder where they have their files");
    return std::make_unique<NvmeFiles>(options.nvmeFolder, rank);
}

Shapes knownShapes(const ExecutablePlan& plan, const LayerKernels& kernels, std::int64_t rank)
{
    std::vector<std::string> unknown;
    Shapes shapes = shapesOf(plan, kernels, rank, unknown);
    if (!unknown.empty()) {
        Findings findings(plan.file);
        for (const std::string& name : unknown)
            findings.add("/schedule", fmt::format("nothing says how large \"{}\" is: it has no content and no action "
                                                  "writes it",
                                                  name));
        findings.throwIfAny();
    }
    return shapes;
}

} // namespace

struct RankExecutor::Parts {
    Parts(const ExecutablePlan& p, const ExecutorOptions& options, Transport& t, const WeightSource& w,
          const BatchSource& b)
        : plan(p), schedule(p.schedule), transport(t), weights(w), batches(b), device(makeHostDevice(options.threads)),
          kernels(p.model, p.training, p.training.gradientAccumulation, *device),
          shapes(knownShapes(p, kernels, t.rank())), arena(options.memoryLimit), recorder(schedule),
          files(filesFor(p, shapes, options, t.rank())), buffers(schedule, shapes, arena, files.get()),
          mover(buffers, recorder), collectives(p, buffers, recorder, t),
          updates(p, options.optimizer, buffers, mover, recorder, t), seed(options.seed),
          residence(p.model, schedule, shapes, buffers, p.training.precision.mixed.value_or(p.training.precision.load)),
          warmUpSteps(options.optimizer.warmUpSteps), late(schedule.buffers.size(), false)
    {
    }

    /// The segments behind the initialisation; `warmsUp`: stand-ins instead of what they stand in for.
    void playStep(bool warmsUp, const std::function<void()>& between)
    {
        bool stoodIn = false;
        for (std::size_t i = 1; i < schedule.segments.size(); ++i) {
            const Segment& segment = schedule.segments[i];
            const bool standIn = segment.repeat == 0;
            if (standIn ? warmsUp : !stoodIn)
                playSegment(segment, standIn ? 1 : segment.repeat, between);
            stoodIn = standIn && warmsUp;
        }
    }

    void playSegment(const Segment& segment, std::int64_t turns, const std::function<void()>& between)
    {
        for (std::int64_t turn = 0; turn < turns; ++turn) {
            const std::vector<BufferId> before = buffers.liveIds();
            for (std::uint32_t op = segment.firstOp; op < segment.endOp; ++op) {
                play(op);
                if (between)
                    between();
            }
            // The segment that follows knows the buffers by the names of one repetition.
            if (turn + 1 < turns)
                takeBackNames(before);
        }
    }

    /// Buffers that were freed and made anew get their names of `before` again.
    void takeBackNames(const std::vector<BufferId>& before)
    {
        const std::set<BufferId> known(before.begin(), before.end());
        std::vector<BufferId> fresh;
        for (const BufferId buffer : buffers.liveIds())
            if (!known.contains(buffer))
                fresh.push_back(buffer);
        for (const BufferId gone : before) {
            if (buffers.live(gone))
                continue;
            const auto like = std::find_if(fresh.begin(), fresh.end(), [&](BufferId buffer) {
                return schedule.buffers[static_cast<std::size_t>(buffer)] ==
                           schedule.buffers[static_cast<std::size_t>(gone)] &&
                       schedule.contentOf[static_cast<std::size_t>(buffer)] ==
                           schedule.contentOf[static_cast<std::size_t>(gone)];
            });
            if (like == fresh.end())
                continue; // its use is then found, by name
            buffers.rename(*like, gone);
            fresh.erase(like);
        }
    }

    void play(std::uint32_t id)
    {
        const Op& op = schedule.ops[id];
        const std::string name = describe(op, id);
        arena.beginOperation(id, &name);
        recorder.beginOperation();
        std::uint32_t event = 0;
        try {
            for (std::uint32_t i = 0; i < op.actionCount; ++i) {
                const Action& action = schedule.actions[op.firstAction + i];
                for (; event < action.eventsBefore; ++event)
                    apply(op, schedule.events[op.firstEvent + event]);
                run(op, action);
            }
            for (; event < op.eventCount; ++event)
                apply(op, schedule.events[op.firstEvent + event]);
        } catch (const std::logic_error& error) {
            throw std::logic_error(fmt::format("{}: {}", name, error.what()));
        }
        recorder.endOperation(static_cast<OpId>(id), arena);
        arena.beginOperation(-1, nullptr);
    }

    void apply(const Op& op, const BufferEvent& event)
    {
        const auto index = static_cast<std::size_t>(event.buffer);
        switch (event.change) {
        case BufferChange::Allocate:
            if (op.phase == Phase::Init && buffers.classOf(event.buffer).spec->lifetime == Lifetime::FromFirstStep)
                late[index] = true; // made when the first optimizer step needs it
            else
                buffers.allocate(event.buffer);
            break;
        case BufferChange::Free:
        case BufferChange::FreeDeferred: // operations run in issue order: nothing uses it any more
            if (late[index])
                late[index] = false;
            else
                buffers.free(event.buffer);
            break;
        case BufferChange::Reclaim: break;
        }
    }

    void run(const Op& op, const Action& action)
    {
        const std::span<const BufferId> operands(schedule.operands.data() + action.firstOperand,
                                                 std::size_t{action.reads} + action.writes);
        const auto reads = operands.first(action.reads);
        const auto writes = operands.subspan(action.reads);
        if (action.verb != Verb::Initialize || op.phase != Phase::Init)
            for (const BufferId buffer : operands)
                makeIfLate(buffer);
        switch (action.verb) {
        case Verb::Initialize:
            for (const BufferId buffer : writes)
                if (!late[static_cast<std::size_t>(buffer)])
                    mover.initialize(buffer, weights);
            break;
        case Verb::Move: mover.move(reads, writes, false); break;
        case Verb::Add: mover.move(reads, writes, true); break;
        case Verb::AllGather:
        case Verb::ReduceScatter:
        case Verb::AllReduce:
        case Verb::ReduceTo:
        case Verb::Broadcast:
        case Verb::AllToAll: collectives.run(op, action, reads, writes); break;
        case Verb::Clip: updates.clip(action, reads, writes); break;
        case Verb::Update: updates.update(action, reads, writes, stepsDone + 1); break;
        case Verb::Compute: compute(action, reads, writes); break;
        case Verb::LoadBatch: loadBatch(writes); break;
        case Verb::Hold:
            for (const BufferId buffer : writes)
                buffers.hold(buffer, action.content);
            break;
        case Verb::Compress:
        case Verb::AverageSigns:
        case Verb::ExpandSigns: runSignVerb(action.verb, buffers, reads, writes); break;
        }
    }

    void makeIfLate(BufferId buffer)
    {
        const auto index = static_cast<std::size_t>(buffer);
        if (!late[index])
            return;
        late[index] = false;
        buffers.allocate(buffer);
        mover.initialize(buffer, weights);
    }

    /// Of the steps to come. Stand-ins come first, and the first step behind them makes what they did not.
    std::int64_t findFirstSteadyStep() const
    {
        const bool warmsUp = std::any_of(schedule.segments.begin(), schedule.segments.end(),
                                         [](const Segment& segment) { return segment.repeat == 0; });
        const std::int64_t warmUp = warmsUp ? std::max<std::int64_t>(0, warmUpSteps - stepsDone) : 0;
        bool makes = false;
        for (std::size_t i = 0; i < late.size(); ++i)
            makes = makes || (late[i] && shapes.buffers[i].bytes > Bytes(0));
        return checkedAdd(checkedAdd(warmUp, 1), makes ? 1 : 0);
    }

    void makeAllLate()
    {
        for (std::size_t i = 0; i < late.size(); ++i)
            makeIfLate(static_cast<BufferId>(i));
    }

    void compute(const Action& action, std::span<const BufferId> reads, std::span<const BufferId> writes)
    {
        KernelCall call;
        call.kernel = action.kernel;
        call.layer = action.layer;
        call.module = action.module;
        for (const BufferId buffer : reads) {
            if (buffers.held(buffer) == nullptr && buffers.written(buffer) == 0)
                throw std::logic_error(fmt::format("\"{}\" is read before anything wrote it", buffers.nameOf(buffer)));
            call.reads.push_back(buffers.view(buffer));
        }
        for (const BufferId buffer : writes)
            call.writes.push_back(buffers.view(buffer));
        std::vector<BufferId> gradients;
        if (action.module >= 0)
            for (const std::int32_t tensor : kernels.tensorsOf(action.layer, action.module)) {
                call.weights.push_back(residence.weight(tensor));
                if (action.gradient < 0)
                    continue;
                const Residence::GradientPlace place = residence.gradient(action.gradient, tensor);
                call.weightGradients.push_back(place.view);
                gradients.push_back(place.buffer);
            }
        kernels.run(call);
        for (const BufferId buffer : writes)
            buffers.touch(buffer);
        for (const BufferId buffer : gradients)
            buffers.touch(buffer);
    }

    void loadBatch(std::span<const BufferId> writes)
    {
        const Training& training = plan.training;
        const std::int64_t number = checkedMultiply(
            checkedAdd(checkedMultiply(stepsDone, training.gradientAccumulation), microStep), transport.ranks());
        const std::int64_t first = checkedMultiply(number + transport.rank(), training.microBatch);
        kernels.beginBatch(seed, first);
        for (const BufferId buffer : writes) {
            const TensorView batch = buffers.view(buffer);
            if (batch.dtype != DType::Int64 || batch.elements != 2 * training.tokensPerMicroBatch())
                throw std::logic_error(fmt::format("\"{}\" is no place for tokens and labels", buffers.nameOf(buffer)));
            auto* tokens = batch.as<std::int64_t>();
            std::int64_t* labels = tokens + training.tokensPerMicroBatch();
            for (std::int64_t i = 0; i < training.microBatch; ++i)
                batches.read(first + i, training.sequenceLength, tokens + i * training.sequenceLength,
                             labels + i * training.sequenceLength);
            buffers.touch(buffer);
        }
        ++microStep;
    }

    const ExecutablePlan& plan;
    const Schedule& schedule;
    Transport& transport;
    const WeightSource& weights;
    const BatchSource& batches;
    std::unique_ptr<Device> device;
    LayerKernels kernels;
    Shapes shapes;
    Arena arena;
    Recorder recorder;
    std::unique_ptr<NvmeFiles> files;
    Buffers buffers;
    Mover mover;
    Collectives collectives;
    Updates updates;
    std::uint64_t seed;
    Residence residence;
    std::int64_t warmUpSteps;
    std::vector<bool> late; // by BufferId: allocated in the initialisation, made at the first optimizer step
    std::int64_t stepsDone = 0;
    std::int64_t firstSteadyStep = 0;           // of this run; 0 = it has not begun
    std::int64_t microStep = 0;                 // of the step under way
    std::vector<std::vector<std::byte>> staged; // what state() read from files
};

RankExecutor::RankExecutor(const ExecutablePlan& plan, const ExecutorOptions& options, Transport& transport,
                           const WeightSource& weights, const BatchSource& batches)
{
    if (plan.ranks != transport.ranks())
        throw InputError(plan.file, "/ranks", fmt::format("the plan is for {} ranks", plan.ranks),
                         fmt::format("one for the {} that run", transport.ranks()));
    m_parts = std::make_unique<Parts>(plan, options, transport, weights, batches);
}

RankExecutor::~RankExecutor() = default;

void RankExecutor::initialise(const std::function<void()>& between)
{
    m_parts->playSegment(m_parts->schedule.segments.front(), 1, between);
}

double RankExecutor::step(const std::function<void()>& between)
{
    Parts& parts = *m_parts;
    if (parts.firstSteadyStep == 0)
        parts.firstSteadyStep = parts.findFirstSteadyStep();
    parts.arena.beginStep();
    parts.recorder.beginStep(parts.stepsDone == 0);
    parts.microStep = 0;
    const std::vector<BufferId> before = parts.buffers.liveIds();
    parts.playStep(parts.stepsDone < parts.warmUpSteps, between);
    parts.takeBackNames(before);
    const double loss = parts.transport.sum(parts.kernels.takeLoss()) / parts.transport.ranks();
    parts.recorder.scalar(Bytes(sizeof(double)));
    parts.recorder.endStep(parts.arena);
    ++parts.stepsDone;
    return loss;
}

TrainingState RankExecutor::state()
{
    if (m_parts->stepsDone == 0)
        m_parts->makeAllLate();
    return savedState(m_parts->buffers, m_parts->plan, m_parts->transport.rank(), m_parts->stepsDone, m_parts->staged);
}

void RankExecutor::restore(const TrainingState& saved)
{
    Parts& parts = *m_parts;
    parts.makeAllLate();
    restoreState(saved, parts.buffers, parts.plan, parts.transport);
    parts.stepsDone = saved.step;
}

std::int64_t RankExecutor::firstSteadyStep() const
{
    return m_parts->firstSteadyStep > 0 ? m_parts->firstSteadyStep : m_parts->findFirstSteadyStep();
}

RankMeasurement RankExecutor::measurement() const
{
    RankMeasurement measurement;
    measurement.rank = m_parts->transport.rank();
    m_parts->recorder.fill(measurement, m_parts->arena);
    if (m_parts->files)
        measurement.nvmeFiles = m_parts->files->onDisk();
    return measurement;
}

} // namespace shardwright
