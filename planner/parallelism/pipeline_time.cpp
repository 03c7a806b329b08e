#include "planner/parallelism/pipeline_time.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "planner/frameworks/sharding.hpp"
#include "planner/step_time.hpp"

namespace shardwright {

namespace {

double sum(const std::vector<double>& values)
{
    return std::accumulate(values.begin(), values.end(), 0.0);
}

/// Plays all stages' actions as soon as what they wait for is there.
class PipelinePlay {
public:
    PipelinePlay(const PipelineShape& shape, const std::vector<StageSeconds>& stages, double transfer)
        : m_shape(shape), m_stages(stages), m_transfer(transfer), m_places(shape.stages * shape.chunks)
    {
        const auto all = static_cast<std::size_t>(m_places * shape.microBatches);
        m_forward.assign(all, -1);
        m_backward.assign(all, -1);
        for (std::int64_t stage = 0; stage < shape.stages; ++stage)
            m_actions.push_back(pipelineActions(shape, stage));
    }

    /// When each stage has ended; what it did goes to `played`, where that is wanted.
    std::vector<double> run(std::vector<PlayedAction>* played = nullptr)
    {
        const auto stages = static_cast<std::size_t>(m_shape.stages);
        std::vector<std::size_t> next(stages, 0);
        std::vector<double> free(stages, 0);
        bool moved = true;
        while (moved) {
            moved = false;
            for (std::size_t stage = 0; stage < stages; ++stage)
                while (next[stage] < m_actions[stage].size()) {
                    const PipelineAction& action = m_actions[stage][next[stage]];
                    const double ready = readyAt(static_cast<std::int64_t>(stage), action);
                    if (ready < 0)
                        break;
                    const auto chunk = static_cast<std::size_t>(action.chunk);
                    const StageSeconds& seconds = m_stages[stage];
                    const double start = std::max(free[stage], ready);
                    free[stage] = start + (action.forward ? seconds.forward[chunk] : seconds.backward[chunk]);
                    if (played != nullptr)
                        played->push_back({static_cast<std::int64_t>(stage), action, start, free[stage]});
                    const std::size_t at = index(placeOf(static_cast<std::int64_t>(stage), action), action);
                    (action.forward ? m_forward : m_backward)[at] = free[stage];
                    ++next[stage];
                    moved = true;
                }
        }
        for (std::size_t stage = 0; stage < stages; ++stage)
            assert(next[stage] == m_actions[stage].size());
        return free;
    }

private:
    std::int64_t placeOf(std::int64_t stage, const PipelineAction& action) const
    {
        return action.chunk * m_shape.stages + stage;
    }
    std::size_t index(std::int64_t place, const PipelineAction& action) const
    {
        return static_cast<std::size_t>(place * m_shape.microBatches + action.microBatch);
    }
    /// Below zero: not yet known.
    double readyAt(std::int64_t stage, const PipelineAction& action) const
    {
        const std::int64_t place = placeOf(stage, action);
        if (action.forward && place == 0)
            return 0;
        if (!action.forward && place + 1 == m_places)
            return m_forward[index(place, action)];
        const double made = action.forward ? m_forward[index(place - 1, action)] : m_backward[index(place + 1, action)];
        return made < 0 ? made : made + (m_shape.stages > 1 ? m_transfer : 0);
    }

    const PipelineShape& m_shape;
    const std::vector<StageSeconds>& m_stages;
    const double m_transfer;
    const std::int64_t m_places; // chunks of the whole pipeline
    std::vector<std::vector<PipelineAction>> m_actions;
    std::vector<double> m_forward; // ends, by place and micro-batch
    std::vector<double> m_backward;
};

/// How much of a stage's timeline is wanted.
enum class Detail : std::uint8_t { Ends, Breakdown };

/// One stage's schedule on its own, transfers taking no time: what its micro-batches cost.
struct StageRun {
    StageSeconds seconds;
    Timeline timeline; // as far as it was wanted
    double transfer = 0;
    double lost = 0; // of the seconds, what collectives take from the computing beside them
    double flops = 0;
};

/// Sorts a schedule's operations into the passes of chunks.
class PassSums {
public:
    PassSums(const Schedule& schedule, const Timeline& timeline, const std::vector<StageChunk>& chunks)
        : m_schedule(schedule), m_timeline(timeline), m_chunks(chunks)
    {
    }

    /// Mean seconds of each pass over the micro-steps in the middle, or over all where there is no middle.
    StageSeconds of(std::int64_t microBatches, std::int64_t perRound)
    {
        m_seconds.forward.assign(m_chunks.size(), 0);
        m_seconds.backward.assign(m_chunks.size(), 0);
        const auto isMiddle = [](const Segment& segment) { return segment.name == kMiddleRounds; };
        const bool middle = std::any_of(m_schedule.segments.begin(), m_schedule.segments.end(), isMiddle);
        for (const Segment& segment : m_schedule.segments)
            if (!middle || isMiddle(segment))
                add(segment);
        const auto times = static_cast<double>(middle ? perRound : microBatches);
        for (std::vector<double>* passes : {&m_seconds.forward, &m_seconds.backward})
            for (double& seconds : *passes)
                seconds /= times;
        return m_seconds;
    }

private:
    void add(const Segment& segment)
    {
        double before = -1;
        for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i) {
            const Op& op = m_schedule.ops[i];
            if (op.phase == Phase::Init || op.stream != Stream::Compute)
                continue;
            const Interval& interval = m_timeline.ops[i];
            const double seconds = interval.end - (before < 0 ? interval.start : before);
            before = interval.end;
            if (op.kind == OpKind::LossForward || op.kind == OpKind::LossBackward)
                m_chunk = m_chunks.size() - 1;
            else if (op.layer >= 0)
                m_chunk = chunkOf(op.layer);
            if (op.phase == Phase::Forward || op.phase == Phase::Loss)
                m_seconds.forward[m_chunk] += seconds;
            else if (op.phase == Phase::Backward)
                m_seconds.backward[m_chunk] += seconds;
        }
    }

    std::size_t chunkOf(int layer) const
    {
        for (std::size_t chunk = 0; chunk < m_chunks.size(); ++chunk)
            if (layer < m_chunks[chunk].end)
                return chunk;
        return m_chunks.size() - 1;
    }

    const Schedule& m_schedule;
    const Timeline& m_timeline;
    const std::vector<StageChunk>& m_chunks;
    StageSeconds m_seconds;
    std::size_t m_chunk = 0;
};

std::optional<StageRun> runStage(const PlanInput& input, const PipelineShape& shape, const StageSchedule& stage,
                                 Detail detail)
{
    const Schedule& schedule = stage.schedule;
    const OpCosts costs(input, *stage.rules->activations(), schedule.sizes);
    OpTimes times = opTimes(schedule, costs);
    StageRun run;
    for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
        const OpKind kind = schedule.ops[i].kind;
        if (kind == OpKind::Send || kind == OpKind::Receive) {
            run.transfer = std::max(run.transfer, times.seconds[i]);
            times.seconds[i] = 0;
        }
        if (!std::isfinite(times.seconds[i]))
            return std::nullopt;
    }
    const bool ends = detail == Detail::Ends;
    run.timeline = ends ? simulatedEnds(schedule, times) : simulate(schedule, times);
    run.flops = ends ? 0 : executedFlops(schedule, costs.layers());
    run.seconds = PassSums(schedule, run.timeline, input.slice->chunks)
                      .of(shape.microBatches, shape.chunks == 1 ? 1 : shape.stages);
    run.seconds.rest =
        std::max(0.0, run.timeline.seconds - static_cast<double>(shape.microBatches) * run.seconds.perMicroBatch());
    run.lost = lostBesideCollectives(input.cluster, loadOf(schedule, times), run.timeline.seconds);
    run.seconds.rest += run.lost;
    return run;
}

/// Those of all stages together.
struct JobRun {
    std::vector<StageRun> runs;       // by slice
    std::vector<std::size_t> sliceOf; // by stage
    std::vector<StageSeconds> stages;
    double transfer = 0;
    std::size_t busiest = 0; // the stage that sets the pace: others wait for it
    double seconds = 0;
};

std::optional<JobRun> runJob(const PlanInput& input, const std::vector<ModelSlice>& slices,
                             const std::vector<StageSchedule>& schedules, Detail detail)
{
    const PipelineShape shape = pipelineShape(input.strategy.parallelism, input.training.gradientAccumulation);
    JobRun job;
    job.runs.reserve(slices.size());
    job.sliceOf.assign(static_cast<std::size_t>(shape.stages), 0);
    job.stages.resize(job.sliceOf.size());
    for (std::size_t slice = 0; slice < slices.size(); ++slice) {
        std::optional<StageRun> run = runStage(inputOf(input, slices[slice]), shape, schedules[slice], detail);
        if (!run)
            return std::nullopt;
        job.transfer = std::max(job.transfer, run->transfer);
        for (const std::int64_t stage : slices[slice].alike) {
            job.stages[static_cast<std::size_t>(stage)] = run->seconds;
            job.sliceOf[static_cast<std::size_t>(stage)] = slice;
        }
        job.runs.push_back(std::move(*run));
    }
    const std::vector<double> ends = pipelineEnds(shape, job.stages, job.transfer);
    const auto work = [&](std::size_t stage) {
        return static_cast<double>(shape.microBatches) * job.stages[stage].perMicroBatch() + job.stages[stage].rest;
    };
    for (std::size_t stage = 0; stage < ends.size(); ++stage) {
        job.seconds = std::max(job.seconds, ends[stage] + job.stages[stage].rest);
        if (work(stage) > work(job.busiest))
            job.busiest = stage;
    }
    return job;
}

} // namespace

double StageSeconds::perMicroBatch() const
{
    return sum(forward) + sum(backward);
}

std::vector<PlayedAction> playPipeline(const PipelineShape& shape, const std::vector<StageSeconds>& stages,
                                       double transfer)
{
    std::vector<PlayedAction> played;
    PipelinePlay(shape, stages, transfer).run(&played);
    return played;
}

std::vector<double> pipelineEnds(const PipelineShape& shape, const std::vector<StageSeconds>& stages, double transfer)
{
    return PipelinePlay(shape, stages, transfer).run();
}

double pipelineSeconds(const PipelineShape& shape, const std::vector<StageSeconds>& stages, double transfer)
{
    const std::vector<double> ends = pipelineEnds(shape, stages, transfer);
    double seconds = 0;
    for (std::size_t stage = 0; stage < ends.size(); ++stage)
        seconds = std::max(seconds, ends[stage] + stages[stage].rest);
    return seconds;
}

double pipelineBound(const PipelineShape& shape, const std::vector<StageSeconds>& stages, double transfer)
{
    std::vector<std::size_t> kindOf(stages.size());
    std::iota(kindOf.begin(), kindOf.end(), std::size_t{0});
    return pipelineBound(shape, stages, kindOf, transfer);
}

double pipelineBound(const PipelineShape& shape, const std::vector<StageSeconds>& kinds,
                     const std::vector<std::size_t>& kindOf, double transfer)
{
    std::vector<double> work; // of all micro-batches
    for (const StageSeconds& kind : kinds)
        work.push_back(static_cast<double>(shape.microBatches) * kind.perMicroBatch());
    double bound = 0;
    double ahead = 0; // first chunks of the stages before, forward
    double back = 0;  // and backward
    // The first stage ends last: whatever ends on a later one goes back through all before it.
    const double restOfFirst = kinds[kindOf.front()].rest;
    for (const std::size_t kind : kindOf) {
        const StageSeconds& stage = kinds[kind];
        bound = std::max({bound, ahead + work[kind] + stage.rest, ahead + work[kind] + back + restOfFirst});
        ahead += stage.forward.front() + transfer;
        back += stage.backward.front() + transfer;
    }
    return bound;
}

std::vector<StageSchedule> emitStages(const PlanInput& input, const std::vector<ModelSlice>& slices)
{
    std::vector<StageSchedule> stages;
    stages.reserve(slices.size());
    for (const ModelSlice& slice : slices) {
        StageSchedule& stage = stages.emplace_back();
        stage.rules = makeRules(inputOf(input, slice));
        stage.schedule = stage.rules->emit();
    }
    return stages;
}

std::optional<double> pipelineStepSeconds(const PlanInput& input, const std::vector<ModelSlice>& slices,
                                          const std::vector<StageSchedule>& schedules)
{
    const std::optional<JobRun> job = runJob(input, slices, schedules, Detail::Ends);
    return job ? std::optional(job->seconds) : std::nullopt;
}

std::optional<PipelineTimeline> pipelineTimeline(const PlanInput& input, const std::vector<ModelSlice>& slices,
                                                 const std::vector<StageSchedule>& schedules)
{
    const std::optional<JobRun> job = runJob(input, slices, schedules, Detail::Ends);
    if (!job)
        return std::nullopt;
    PipelineTimeline timeline;
    timeline.seconds = job->seconds;
    timeline.actions = playPipeline(pipelineShape(input.strategy.parallelism, input.training.gradientAccumulation),
                                    job->stages, job->transfer);
    for (const StageSeconds& stage : job->stages)
        timeline.rest.push_back(stage.rest);
    return timeline;
}

std::optional<StepTime> pipelineStep(const PlanInput& input, const std::vector<ModelSlice>& slices,
                                     const std::vector<StageSchedule>& schedules)
{
    const std::optional<JobRun> job = runJob(input, slices, schedules, Detail::Breakdown);
    if (!job)
        return std::nullopt;
    double flops = 0;
    for (const std::size_t slice : job->sliceOf)
        flops += job->runs[slice].flops / static_cast<double>(job->sliceOf.size());
    const StageRun& run = job->runs[job->sliceOf[job->busiest]];
    StepTime step;
    step.breakdown = run.timeline.breakdown;
    step.breakdown.other += run.lost;
    step.breakdown.bubble += std::max(0.0, job->seconds - step.breakdown.total());
    step.hiddenCommunicationSeconds = run.timeline.hiddenCommunicationSeconds;
    fillRates(inputOf(input, slices.front()), job->seconds, flops, step);
    warnOfLostSeconds(run.lost, step);
    return step;
}

} // namespace shardwright
