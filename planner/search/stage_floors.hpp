#pragma once

// What no schedule of a candidate gets below, whatever its framework does about gathering, reducing and stepping:
// seconds on the compute stream, and memory that forward passes keep for backward. Read off the layers' own walks,
// kind of layer by kind of layer, so that a candidate costs a look-up and one sum.

#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "planner/activations/activation_model.hpp"
#include "planner/costs/overlap_costs.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/plan_input.hpp"

namespace shardwright::search {

struct StageFloors {
    /// Of a step: each stage's passes, with the collectives that they wait for on their own stream, what a stage waits
    /// at least for the others and, where all its collectives are known, what they take from its computing.
    double seconds = 0;
    /// By slice, of a step: what the compute stream has at least, and the collectives beside it, those of the strategy
    /// where they are known.
    std::vector<StepLoad> loads;
    /// By slice: bytes of GPU memory that the micro-batches in flight hold together when the stage turns to its first
    /// backward, the most of all its moments before that.
    std::vector<std::int64_t> kept;
};

/// A strategy's collectives beside those of its layers, over a step.
struct StepCollectives {
    std::int64_t strategy = -1;  // equal for equal ones; below zero: they are not known
    std::vector<double> seconds; // by slice
};

/// Not thread-safe: one per thread. All candidates are of one model.
class FloorTable {
public:
    FloorTable();
    ~FloorTable();

    /// `slices`: of a candidate that needs them (sliceModel), which must outlive this; otherwise nothing. What is
    /// returned holds until the next call.
    const StageFloors& of(const PlanInput& input, const std::vector<ModelSlice>* slices,
                          const StepCollectives& collectives = {});

private:
    /// One layer and one micro-batch.
    struct Layer {
        double forward = 0;     // seconds on the compute stream
        double backward = 0;    // recomputation included
        StepLoad load;          // of both
        std::int64_t kept = 0;  // bytes on the GPU
        std::int64_t input = 0; // of them, what the layer reads
        bool known = false;
    };
    struct Layers {
        std::vector<std::array<Layer, 2>> of; // by layer type, and whether the layer is checkpointed
        Layer loss;
        Bytes sent;                // from one pipeline stage to the next
        std::int64_t boundary = 0; // bytes that a stage holds less once that is sent: below zero
    };
    class Walked;
    using Walks = std::vector<std::unique_ptr<Walked>>;
    using Key = std::array<std::int64_t, 20>;
    struct Hash {
        std::size_t operator()(const Key& key) const;
    };
    struct Sums;

    static void measure(const PlanInput& part, Walks& walks, Layers& layers);
    static Sums sum(const PlanInput& part, const Layers& layers);
    StageFloors workOut(const PlanInput& input, const std::vector<ModelSlice>* slices,
                        const StepCollectives& collectives, const Key& key);

    std::unordered_map<Key, StageFloors, Hash> m_known;
    std::unordered_map<Key, Layers, Hash> m_layers;
    std::unordered_map<Key, Walks, Hash> m_walks;
};

} // namespace shardwright::search
