#pragma once

// The order in which leaf modules run, and the order in which their trainable tensors stand in DeepSpeed's flat buffers
// and arrive in its reduction buckets.

#include <cstdint>
#include <vector>

#include "planner/activations/activation_model.hpp"

namespace shardwright {

/// One leaf module at work in a micro-step.
struct Visit {
    Pass pass = Pass::Forward;
    int layer = 0; // position in Model::layers of the module's owner
    int module = 0;
};

/// The visits of one micro-step in order. The same in every micro-step.
std::vector<Visit> recordVisits(const ActivationModel& activations, const SizeTable& sizes);

/// A module whose gradients are complete.
struct GradientArrival {
    int layer = 0;
    int module = 0;

    bool operator==(const GradientArrival&) const = default;
};

/// Arrivals in the order of backward. A tied weight arrives once, when the embedding's part has been added.
std::vector<GradientArrival> arrivalsInBackward(const ActivationModel& activations, const std::vector<Visit>& visits);

/// All trainable modules in the order of registration (forward order).
std::vector<GradientArrival> arrivalsInForwardOrder(const ActivationModel& activations);

/// True for the embedding's module when a head without parameters uses it too.
bool isTiedModule(const Model& model, int layer, int module);

/// A trainable tensor in the flat buffer of its parameter group.
struct FlatTensor {
    std::int64_t offset = 0; // elements
    std::int64_t numel = 0;
    std::int64_t longestSide = 0; // of a matrix, or of the first two sides of more; 0 for vectors
    std::int32_t tensor = 0;      // index into listParameters, where no parameter repeats
};

/// Trainable tensors of every module in flat order.
class FlatOrder {
public:
    explicit FlatOrder(const ActivationModel& activations);

    const std::vector<FlatTensor>& tensors() const { return m_tensors; }
    std::int64_t elements() const { return m_elements; }
    std::int64_t largest() const { return m_largest; }
    /// Indices of a module's tensors: [first, end).
    std::pair<std::size_t, std::size_t> range(int layer, int module) const
    {
        return m_ranges[static_cast<std::size_t>(layer)][static_cast<std::size_t>(module)];
    }

    /// Most elements that the tensors touching one partition of `partition` elements have: ZeRO-1/2 copies boundary
    /// tensors whole.
    std::int64_t mostTouched(std::int64_t partition) const;

private:
    std::vector<FlatTensor> m_tensors;
    std::vector<std::vector<std::pair<std::size_t, std::size_t>>> m_ranges;
    std::int64_t m_elements = 0;
    std::int64_t m_largest = 0;
};

} // namespace shardwright
