#pragma once

// The steps of one norm, as parts of a layer's program.

#include "planner/activations/block_program.hpp"
#include "planner/activations/family_rules.hpp"

namespace shardwright {

enum class NormSteps : std::uint8_t {
    Kernel,      // one kernel keeps its input and statistics: LayerNorm, fused RMSNorm, a compiled norm
    Eager,       // RMSNorm spelled out: fp32 copy and normalised input are kept
    EagerInFp32, // and its weight multiplied in fp32 (Gemma)
};

NormSteps normStepsOf(const ProgramContext& context);

/// A norm in a program; slots are -1 where the kind has none.
struct NormTensors {
    NormSteps kind = NormSteps::Kernel;
    int module = -1;
    int input = -1;
    int fp32 = -1;
    int hat = -1;
    int statistics = -1;
    int out = -1;
};

/// Appends the forward of a norm over `width` elements a token, `rows` rows of them (heads), to a new tensor `out`, or
/// into `out` when it is given.
NormTensors normForward(const ProgramContext& context, LayerProgram& program, int layerType, int module, int input,
                        std::int64_t width, std::int64_t rows, int out);

/// Appends its backward: gradient of the output to gradient of the input.
void normBackward(const ProgramContext& context, LayerProgram& program, int layerType, const NormTensors& norm,
                  std::int64_t width, int gradOut, int gradInput);

} // namespace shardwright
