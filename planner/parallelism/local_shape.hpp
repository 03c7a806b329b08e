#pragma once

// How the tensors of a layer are split over the GPUs that hold one replica of the model, as one rank sees it.

#include "core/schedule.hpp"
#include "core/strategy.hpp"

namespace shardwright {

struct PlanInput;

struct LocalShape {
    std::int64_t tensor = 1;       // ranks that share every layer's matrices
    bool sequenceParallel = false; // norms and residual stream split along the sequence over them
    std::int64_t context = 1;      // ranks that share every sequence
    ContextExchange exchange = ContextExchange::Ring;
    std::int64_t expert = 1;       // ranks that share the experts
    std::int64_t expertTensor = 1; // ranks that share one expert's matrices
    double expertImbalance = 1.0;  // tokens of the busiest of them over the mean
    // Megatron-LM (core/tensor_parallel/layers.py LinearWithGradAccumulationAndAsyncCommunication, as Transformer
    // Engine) keeps the split input of a column-parallel matrix and gathers it again in backward; it runs that gather
    // beside the product for the input's gradient and the reduction of that gradient beside the weights'.
    // DTensor modules (torchtitan) keep the gathered input and wait for each collective.
    bool regathers = false;
    bool splitsLoss = false;        // every rank keeps its part of the vocabulary's logits
    std::int64_t stages = 1;        // of the pipeline
    std::int64_t boundarySplit = 1; // ranks that share what goes from stage to stage
    // torch.distributed.pipelining (stage.py): every micro-batch is received into a buffer of its own that is never
    // freed (args_recv_info, grad_recv_info), and what a stage sent, or the logits, live until its backward is done
    // (fwd_cache).
    bool keepsBoundaries = false;
    Group tensorGroup{"tensor", 1, 1};
    Group contextGroup{"context", 1, 1};
    Group expertGroup{"expert", 1, 1};
    Group pipelineGroup{"pipeline", 1, 1}; // neighbouring stages

    // tp_comm_overlap: gathers run beside the products that read what they bring, reductions beside those that make
    // what they sum.
    bool overlapsProducts = false;

    bool splitsTensors() const { return tensor > 1; }
    bool splitsSequence() const { return tensor > 1 && sequenceParallel; }
    /// Tensor-parallel ranks route tokens of their own, to whole experts (expert tensor parallel size 1).
    std::int64_t expertSplit() const { return splitsSequence() && expertTensor == 1 ? tensor : 1; }
};

LocalShape localShape(const PlanInput& input);

} // namespace shardwright
