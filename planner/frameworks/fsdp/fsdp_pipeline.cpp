// A pipeline of stages that are sharded: torch/distributed/pipelining (stage.py, schedules.py) around fully_shard, as
// torchtitan puts them together. Each chunk of layers is a root of its own. Gradients of all micro-batches stay whole
// and parameters stay gathered after a backward (set_requires_gradient_sync(False), set_reshard_after_backward(False));
// behind the last backward every unit is resharded and reduced, one after the other (stage.py _post_backward).

#include "planner/frameworks/fsdp/fsdp_emission.hpp"

namespace shardwright {

void FsdpEmission::reduceChunk(const std::vector<int>&) {}

void FsdpEmission::runPipeline()
{
    const ModelSlice& slice = *m_shape.slice;
    const PipelineShape& shape = m_shape.pipeline;
    const PipelineProgram program = pipelineProgram(shape, slice.stage);
    for (const PipelineStretch& stretch : program.stretches) {
        m_builder.beginSegment(stretch.name, stretch.repeat);
        for (std::size_t i = stretch.first; i < stretch.end; ++i) {
            const PipelineAction& action = program.actions[i];
            if (action.forward)
                pipelineForward(action);
            else
                pipelineBackward(action, program.lastMicroBatch);
        }
    }
}

void FsdpEmission::pipelineForward(const PipelineAction& action)
{
    const StageChunk& chunk = m_shape.slice->chunks[static_cast<std::size_t>(action.chunk)];
    const auto [at, fresh] = m_walks.try_emplace(action.microBatch, m_shape.activations);
    ActivationWalk& walk = at->second;
    if (fresh)
        walk.beginMicroStep(m_builder);
    if (chunk.receivesInput)
        walk.receiveInput(m_builder);
    beginForward(chunk);
    forwardLayers(walk, chunk);
    if (chunk.sendsOutput)
        walk.sendOutput(m_builder);
    else
        walk.lossForward(m_builder);
}

void FsdpEmission::pipelineBackward(const PipelineAction& action, std::int64_t lastMicroBatch)
{
    const StageChunk& chunk = m_shape.slice->chunks[static_cast<std::size_t>(action.chunk)];
    ActivationWalk& walk = m_walks.at(action.microBatch);
    const bool last = action.microBatch == lastMicroBatch;
    ++m_microStep;
    m_forwardOrder = unitsIn(chunk);
    m_inBackward.assign(m_gradients.size(), false);
    enterRootForward(m_builder.lastOp());
    if (chunk.sendsOutput)
        walk.receiveGradient(m_builder);
    else
        walk.lossBackward(m_builder);
    if (!empty(kRootUnit))
        enterBackward(kRootUnit);
    backwardLayers(walk, chunk, {{}, action.microBatch == 0, last, 1});
    walk.releaseOutput(m_builder);
    if (last) {
        reduceChunk(m_forwardOrder);
        leaveBackward();
    }
    if (chunk.receivesInput)
        walk.sendGradient(m_builder);
    if (action.chunk == 0) { // the first layers of a micro-batch are the last in backward
        walk.endMicroStep(m_builder);
        m_walks.erase(action.microBatch);
    }
}

} // namespace shardwright
