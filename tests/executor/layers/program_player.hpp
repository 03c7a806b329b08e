#pragma once

// Plays the planner's program of one micro-step on the executor's kernels, without a rank executor: buffers are plain
// memory, weights are whole.

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "executor/layers/layer_kernels.hpp"
#include "planner/activations/activation_model.hpp"
#include "tests/executor/layers/reference_decoder.hpp"

namespace shardwright {

/// What a micro-step gave. Gradients by Hugging Face name, summed where a tensor has several.
struct Played {
    double loss = 0;
    Weights gradients;
    std::vector<std::string> wrongSizes; // buffers whose class and kernel disagree
};

Played play(const Model& model, const Training& training, const Weights& weights, const Batch& batch, int threads = 1,
            DType gradientType = DType::Fp32);

} // namespace shardwright
