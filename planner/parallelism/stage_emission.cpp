#include "planner/parallelism/stage_emission.hpp"

#include <cassert>

namespace shardwright {

void emitPipeline(ScheduleBuilder& builder, const ActivationModel& activations, const ModelSlice& slice,
                  const PipelineShape& shape, StageObserver& observer, const BackwardHooks& hooks)
{
    assert(slice.chunks.size() == 1);
    const StageChunk& chunk = slice.chunks.front();
    const PipelineProgram program = pipelineProgram(shape, slice.stage);
    std::map<std::int64_t, ActivationWalk> walks; // micro-batches in flight
    const auto forward = [&](std::int64_t microBatch) {
        ActivationWalk& walk = walks.try_emplace(microBatch, activations).first->second;
        walk.beginMicroStep(builder);
        if (chunk.receivesInput)
            walk.receiveInput(builder);
        for (int layer = chunk.first; layer < chunk.end; ++layer)
            walk.forward(builder, layer, observer);
        if (chunk.sendsOutput)
            walk.sendOutput(builder);
        else
            walk.lossForward(builder);
    };
    const auto backward = [&](std::int64_t microBatch) {
        ActivationWalk& walk = walks.at(microBatch);
        const MicroStep step{{}, microBatch == 0, microBatch == program.lastMicroBatch, 1};
        hooks.before(step);
        if (chunk.sendsOutput)
            walk.receiveGradient(builder);
        else
            walk.lossBackward(builder);
        for (int layer = chunk.end - 1; layer >= chunk.first; --layer)
            walk.backward(builder, layer, observer);
        if (chunk.receivesInput)
            walk.sendGradient(builder);
        hooks.after(step);
        walk.endMicroStep(builder);
        walks.erase(microBatch);
    };
    for (const PipelineStretch& stretch : program.stretches) {
        builder.beginSegment(stretch.name, stretch.repeat);
        for (std::size_t i = stretch.first; i < stretch.end; ++i) {
            const PipelineAction& action = program.actions[i];
            if (action.forward)
                forward(action.microBatch);
            else
                backward(action.microBatch);
        }
    }
}

} // namespace shardwright
