#pragma once

// A decoder in plain loops and double precision, written from the papers' formulas: what the kernels are held against.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/model.hpp"

namespace shardwright {

/// By Hugging Face name.
using Weights = std::map<std::string, std::vector<double>>;

struct Batch {
    std::int64_t sequences = 1;
    std::int64_t length = 1;
    std::vector<std::int64_t> tokens, labels; // sequences x length
    std::uint64_t seed = 0;                   // of dropout
    std::int64_t firstSequence = 0;           // number in the run
};

/// Mean cross entropy of the labels.
double referenceLoss(const Model& model, const Weights& weights, const Batch& batch);

} // namespace shardwright
