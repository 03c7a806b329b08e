#pragma once

// Carries out a plan's schedule on one rank.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/measurement.hpp"
#include "core/plan_file.hpp"
#include "executor/comm/transport.hpp"
#include "executor/layers/layer_kernels.hpp"
#include "executor/state/sources.hpp"
#include "executor/state/training_state.hpp"

namespace shardwright {

struct OptimizerSettings {
    double learningRate = 1e-3;
    double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weightDecay = 0.1; // of matrices; vectors do not decay
    // Of optimizers that begin uncompressed (1-bit Adam's freeze_step): the first steps, which plans say nothing of.
    std::int64_t warmUpSteps = 10;
};

struct ExecutorOptions {
    OptimizerSettings optimizer;
    std::string nvmeFolder; // where NVMe buffers have their files; needed where the plan has any
    Bytes memoryLimit;      // of the device; 0 = none
    int threads = 1;        // of this rank's computing
    std::uint64_t seed = 1; // of dropout
};

/// Live bytes went over ExecutorOptions::memoryLimit. what(): the categories, the operation, what it asked for.
class OutOfMemory : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// Everything in a plan that the executor cannot carry out, by name; empty = it can.
std::vector<std::string> executorRefusals(const ExecutablePlan& plan);

/// One rank. References must outlive it. Not thread-safe.
class RankExecutor {
public:
    RankExecutor(const ExecutablePlan& plan, const ExecutorOptions& options, Transport& transport,
                 const WeightSource& weights, const BatchSource& batches);
    ~RankExecutor();

    /// The schedule's initialisation. `between` is called after each operation (cancellation: it may throw).
    void initialise(const std::function<void()>& between = {});
    /// One optimizer step; returns the mean loss over all ranks and micro-steps.
    double step(const std::function<void()>& between = {});

    /// Views of the state between two steps; what is on NVMe is brought to memory for as long as the result lives.
    TrainingState state();
    /// Takes over what `pieces` hold, dtype by dtype; then 16-bit copies and other derived buffers are made anew.
    void restore(const TrainingState& saved);

    RankMeasurement measurement() const;
    /// Measurement::firstSteadyStep, of the steps since the beginning or restore().
    std::int64_t firstSteadyStep() const;

private:
    struct Parts;
    std::unique_ptr<Parts> m_parts;
};

} // namespace shardwright
