#pragma once

// Programs of shardrun's own layers (Training::implementation "shardrun"): every step names the kernel that the
// executor runs for it. Of models and settings that core/layer_refusals.hpp lets pass.

#include "planner/activations/block_program.hpp"

namespace shardwright {

/// Of any layer but the loss. `logits`: class of the head's output.
LayerProgram shardrunProgram(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules,
                             BufferClassId logits);
/// The gradient takes the place of the logits.
LayerProgram shardrunLossProgram(const ProgramContext& context, BufferClassId logits);

} // namespace shardwright
