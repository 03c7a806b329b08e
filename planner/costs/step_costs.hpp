#pragma once

// What one step of a layer's program costs: it turns the step's tensors into kernels and asks the kernel models.

#include "planner/activations/activation_model.hpp"
#include "planner/costs/gpu_facts.hpp"
#include "planner/costs/matrix_product.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

struct Cost {
    double seconds = 0;
    double flops = 0; // of matrix products and attention
    int kernels = 0;
    double hostSeconds = 0; // to issue it

    Cost& operator+=(const Cost& other)
    {
        seconds += other.seconds;
        flops += other.flops;
        kernels += other.kernels;
        hostSeconds += other.hostSeconds;
        return *this;
    }
};

class StepCosts {
public:
    /// Both must outlive this.
    StepCosts(const PlanInput& input, const ActivationModel& activations);

    /// `layerType`: of the layer that the program belongs to; -1 for the loss.
    Cost of(const StepWork& work, const LayerProgram& program, int layerType, bool backward) const;

private:
    double bytes(const LayerProgram& program, int slot) const;
    std::int64_t width(const LayerProgram& program, int slot) const;
    Cost stream(double bytes, int kernels) const;
    Cost product(const MatrixProduct& product) const;
    Cost pointwise(const StepWork& work, const LayerProgram& program) const;
    Cost moduleProduct(const StepWork& work, const LayerProgram& program, int layerType, bool backward) const;
    Cost lookup(const StepWork& work, const LayerProgram& program, int layerType, bool backward) const;
    Cost float8Casts(const LeafModule& module, double inBytes, double outBytes, bool backward) const;
    Cost adapter(const LeafModule& module, bool backward) const;
    Cost fusedAttention(bool backward) const;
    Cost eagerProducts(const StepWork& work, bool backward) const;

    const PlanInput& m_input;
    const ActivationModel& m_activations;
    const GpuFacts m_facts;
    const double m_bandwidth;
    const std::int64_t m_elementBytes; // of the compute dtype
    const bool m_scoresInFp32;
    const bool m_tiedHeadTrains;
    const bool m_float8;
    const bool m_float8ByRow;
};

} // namespace shardwright
