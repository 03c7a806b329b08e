#pragma once

// What one layer does with memory: its tensors, the steps of its forward and of its backward, which tensors each step
// makes and which it reads. Which tensors autograd keeps is not listed anywhere: they are those that backward reads.

#include <array>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "core/schedule.hpp"

namespace shardwright {

/// Boundary tensors that every layer has.
enum Slot : int { kInput = 0, kOutput = 1, kGradOutput = 2, kGradInput = 3, kFirstOwnSlot = 4 };

struct SlotEvent {
    std::int16_t slot;
    bool makes;
};

/// Steps that run without another leaf module beginning.
struct ProgramStage {
    int module = -1; // leaf module that computes here, or -1 for steps without parameters
    std::vector<SlotEvent> events;
};
using ProgramPass = std::vector<ProgramStage>;

/// How a layer treats what backward will read. Keep: keeps it. Discard: keeps its input only (full checkpointing).
/// Policy: keeps its input and the tensors of a policy (selective checkpointing).
enum class KeepMode : std::uint8_t { Keep, Discard, Policy };

///
/// A tensor of class -1 does not exist (an optional one): steps may name it all the same.
class LayerProgram {
public:
    LayerProgram();

    /// A new tensor of the layer; `bufferClass` sizes it. The boundary tensors are set by setBoundary.
    int tensor(BufferClassId bufferClass);
    void setBoundary(BufferClassId bufferClass); // class of input, output and both gradients
    void setSlotClass(int slot, BufferClassId bufferClass) { m_classes[static_cast<std::size_t>(slot)] = bufferClass; }

    /// Appends a step. It makes `makes` in order while `uses` are alive; tensors it neither keeps nor hands on die with
    /// it.
    void forward(int module, std::initializer_list<int> uses, std::initializer_list<int> makes);
    void backward(int module, std::initializer_list<int> uses, std::initializer_list<int> makes);
    /// Whether any backward step reads it.
    bool usedInBackward(int slot) const;
    /// Marks a tensor as kept by selective checkpointing.
    void keepByPolicy(int slot) { m_policy[static_cast<std::size_t>(slot)] = true; }

    /// Marks a tensor that somebody outside the layer holds on to: no pass drops it.
    void handOver(int slot) { m_heldSlot = slot; }
    int heldSlot() const { return m_heldSlot; }

    /// Works out the passes; call once after all steps.
    void compile(KeepMode mode);

    const ProgramPass& forwardPass() const { return m_forwardPass; }
    const ProgramPass& recomputePass() const { return m_recomputePass; } // empty in mode Keep
    const ProgramPass& backwardPass() const { return m_backwardPass; }
    bool keepsInput() const { return m_keepsInput; }
    std::size_t slots() const { return m_classes.size(); }
    BufferClassId classOf(int slot) const { return m_classes[static_cast<std::size_t>(slot)]; }

private:
    struct Step {
        int module;
        std::vector<int> uses;
        std::vector<int> makes;
    };
    std::vector<int> existing(std::initializer_list<int> wanted) const;
    ProgramPass passOf(const std::vector<Step>& steps, const std::vector<bool>& keeps,
                       const std::vector<bool>& present) const;

    std::vector<BufferClassId> m_classes;
    std::vector<bool> m_policy;
    std::vector<Step> m_forward;
    std::vector<Step> m_backward;
    ProgramPass m_forwardPass;
    ProgramPass m_recomputePass;
    ProgramPass m_backwardPass;
    bool m_keepsInput = false;
    int m_heldSlot = -1;
};

} // namespace shardwright
