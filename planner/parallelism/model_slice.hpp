#pragma once

// The part of a model that one rank holds and computes under tensor, pipeline and expert parallelism, as a model of its
// own: fewer layers, smaller matrices.

#include <string>
#include <vector>

#include "planner/plan_input.hpp"

namespace shardwright {

/// Where the layers of one chunk of a pipeline stage stand in its slice: [first, end).
struct StageChunk {
    int first = 0;
    int end = 0;
    bool receivesInput = false; // hidden states come from another stage (or chunk)
    bool sendsOutput = false;
};

struct ModelSlice {
    const Model* whole = nullptr;
    Model model;
    std::int64_t stage = 0; // of `stages`
    std::int64_t stages = 1;
    std::vector<std::int64_t> alike; // stages that hold the same, this one first
    std::int64_t firstBlock = 0;     // of the whole model
    std::vector<StageChunk> chunks;
    bool tiedAcrossStages = false; // holds a copy of an embedding that the head on another stage shares
};

/// A vocabulary as frameworks split it over `tensor` ranks. Megatron-LM pads it to a multiple of 128 x t
/// (make_vocab_size_divisible_by, megatron/training/tokenizer: _vocab_size_with_padding), others do not.
std::int64_t paddedVocabulary(const PlanInput& input);

/// How many blocks each chunk of the pipeline holds, chunk by chunk in the order of the forward pass (p x v of them).
std::vector<std::int64_t> blocksOfChunks(const PlanInput& input);

/// Why the model cannot be cut so, in the framework's words; empty = it can.
std::vector<std::string> sliceRefusals(const PlanInput& input);

/// The slices of the stages that differ, by stage. One of the whole model, with
/// its matrices cut, where there is no pipeline.
std::vector<ModelSlice> sliceModel(const PlanInput& input);

/// `input` as the rank of a slice sees it.
inline PlanInput inputOf(const PlanInput& input, const ModelSlice& slice)
{
    return {slice.model, input.cluster, input.training, input.strategy, &slice};
}

/// "pipeline stages 2 to 7 of 8": those that the slice stands for.
std::string nameOfStage(const ModelSlice& slice);

/// Whether `input` has to be sliced before a framework's rules can be applied.
bool needsSlices(const PlanInput& input);

} // namespace shardwright
