#pragma once

// Seconds of the layers' own computing: forward, recomputation, backward and the loss, from the kernels that each step
// of a layer's program launches.

#include <memory>

#include "core/schedule.hpp"
#include "planner/activations/activation_model.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

/// Times of one model under one training setup on one GPU. Cheap to ask, dearer to build: one per candidate.
class LayerCosts {
public:
    /// Both must outlive this.
    LayerCosts(const PlanInput& input, const ActivationModel& activations);
    ~LayerCosts();
    LayerCosts(const LayerCosts&) = delete;
    LayerCosts& operator=(const LayerCosts&) = delete;

    /// Seconds that a Forward, Recompute, Backward, LossForward or LossBackward op keeps the GPU busy: its stages
    /// [firstPart, endPart).
    double seconds(const Op& op) const;

    /// Kernels that it launches, and how long the host is busy issuing them.
    int kernels(const Op& op) const;
    double hostSeconds(const Op& op) const;

    /// FLOPs that the GPU really carries out in it, those of matrix products and attention.
    double flops(const Op& op) const;

private:
    struct Tables;
    std::unique_ptr<Tables> m_tables;
};

/// FLOPs of one token's forward and backward through the whole model as MFU counts them: six per parameter of matrices
/// that the token meets (PaLM, arXiv 2204.02311 app. B), and attention's products, causal ones counted whole as PaLM
/// does. Frozen weights (LoRA) have no weight gradient: four.
double modelFlopsPerToken(const Model& model, std::int64_t sequenceLength);

} // namespace shardwright
