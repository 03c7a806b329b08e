#include "planner/frameworks/sharding.hpp"

#include <fmt/compile.h>

namespace shardwright {

std::string parallelismKey(const Parallelism& parallelism, const Training& training)
{
    if (parallelism.none())
        return {};
    return fmt::format(FMT_COMPILE("t{} sp{} p{}/{}/{} m{} c{}/{} e{}/{}/{}"), parallelism.tensor,
                       parallelism.sequenceParallel, parallelism.pipeline, nameOf(parallelism.schedule),
                       parallelism.virtualStages, parallelism.pipeline > 1 ? training.gradientAccumulation : 0,
                       parallelism.context, nameOf(parallelism.exchange), parallelism.expert, parallelism.expertTensor,
                       parallelism.expertImbalance);
}

std::string activationStructureKey(const Training& training)
{
    return fmt::format(FMT_COMPILE("ac{}/{}/{} attn{} impl{} loss{} compile{} fused{} held{} G{} opt{} fp8{}/{} c{}"),
                       nameOf(training.checkpointing), training.checkpointEvery, training.checkpointSegment,
                       nameOf(training.attention), nameOf(training.implementation), nameOf(training.loss),
                       training.compile, training.fusedNorm, training.holdsLogits,
                       accumulationShape(training.gradientAccumulation), nameOf(training.optimizer),
                       training.precision.fp8, nameOf(training.precision.fp8Scaling),
                       nameOf(computeDtype(training.precision)));
}

} // namespace shardwright
