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

/// What a step computes. ByModule: what its module is: a matrix product, a table lookup, or else a kernel bound by
/// memory.
enum class WorkKind : std::uint8_t {
    ByModule,
    Attention,        // fused: flash or memory-efficient
    AttentionScores,  // batched product of queries and keys
    AttentionContext, // batched product of probabilities and values
    Adapter,          // a module's low-rank adapter beside it
    Nothing,          // names are dropped, nothing runs
};

/// A matrix product's backward may come in two: the input's gradient first, the weights' second.
enum class Half : std::uint8_t { Whole, First, Second };

/// What a collective runs beside. Following: what comes behind it, up to the first step that uses its result. Readers:
/// the products that read its result too, piece by piece, up to the first step that does not. Writer: the step before
/// it, which makes what it sends, piece by piece, and what follows up to the first step that uses its result.
enum class Beside : std::uint8_t { Nothing, Following, Readers, Writer };

/// What one step runs: kernels that read and write tensors. A chain of fused pointwise steps is one of these.
struct StepWork {
    WorkKind kind = WorkKind::ByModule;
    int module = -1;
    std::vector<std::int16_t> reads; // slots
    std::vector<std::int16_t> writes;
    std::vector<std::int16_t> again; // slots that kernels in between read or write once more
    int kernels = 1;
    int times = 1; // it runs chunk by chunk, each as large as its tensors are
    int step = -1; // the first of the program's steps in it
    Half half = Half::Whole;
    Kernel kernel = Kernel::None; // what the executor runs for it
    std::size_t eventsBefore = 0; // of the stage's events, those that come before it
};

/// Steps that run without another leaf module beginning, or one collective between model-parallel ranks.
struct ProgramStage {
    int module = -1; // leaf module that computes here, or -1 for steps without parameters
    std::vector<SlotEvent> events;
    std::vector<StepWork> work;
    Half half = Half::Whole;
    int collective = -1; // index into the activation model's collectives; then nothing computes
    Beside beside = Beside::Nothing;
    bool apart = false;        // an operation of its own, which a collective runs beside
    std::vector<int> waitsFor; // earlier stages of the pass: collectives beside the computing
};
using ProgramPass = std::vector<ProgramStage>;

/// How a layer treats what backward will read. Keep: keeps it. Discard: keeps its input only (full checkpointing).
/// Policy: keeps its input and the tensors of a policy (selective checkpointing).
enum class KeepMode : std::uint8_t { Keep, Discard, Policy };

/// What recomputation runs again of what is not kept. Whole: the forward to its end (reentrant checkpointing).
/// UntilLastNeeded: stops when backward has all it needs (torch.utils.checkpoint without reentrance, early stop).
/// OnlyNeeded: what backward reads and what that is made from (a compiled graph; Megatron's recomputed core).
enum class RecomputeRange : std::uint8_t { Whole, UntilLastNeeded, OnlyNeeded };

/// One step of a layer's forward or backward.
class ProgramStep {
public:
    /// What it computes, where that is not what its module is.
    ProgramStep& is(WorkKind kind)
    {
        m_work.kind = kind;
        return *this;
    }
    ProgramStep& of(int module) // whose work it is, where no new stage begins
    {
        m_work.module = module;
        return *this;
    }
    /// It is `count` kernels, which read or write each of `again` once more than the step's lists say.
    ProgramStep& kernels(int count, std::initializer_list<int> again = {});
    /// The executor's kernel: its operands are the step's reads (not what it holds) and what it makes, in order.
    ProgramStep& runs(Kernel kernel)
    {
        m_work.kernel = kernel;
        return *this;
    }
    ProgramStep& times(int count)
    {
        m_work.times = count;
        return *this;
    }

private:
    friend class LayerProgram;
    int m_module = -1;
    std::vector<int> m_uses; // read or held alive
    std::vector<int> m_makes;
    StepWork m_work;
    int m_collective = -1;
    Beside m_beside = Beside::Nothing;
    int result() const { return m_makes.empty() ? m_uses.front() : m_makes.front(); } // of a collective
    /// Where it does not run, nothing is made for it either.
    bool leftOutWhole() const { return m_collective >= 0 || m_work.kernel != Kernel::None; }
};

/// A tensor of class -1 does not exist (an optional one): steps may name it all the same.
class LayerProgram {
public:
    LayerProgram();

    /// A new tensor of the layer; `bufferClass` sizes it. The boundary tensors are set by setBoundary.
    int tensor(BufferClassId bufferClass);
    void setBoundary(BufferClassId bufferClass); // class of input, output and both gradients
    void setSlotClass(int slot, BufferClassId bufferClass) { m_classes[static_cast<std::size_t>(slot)] = bufferClass; }

    /// Appends a step. It makes `makes` in order, reading `reads`, while `holds` are alive too; tensors it neither
    /// keeps nor hands on die with it. The result is good until the next step is appended.
    ProgramStep& forward(int module, std::initializer_list<int> reads, std::initializer_list<int> makes,
                         std::initializer_list<int> holds = {});
    ProgramStep& backward(int module, std::initializer_list<int> reads, std::initializer_list<int> makes,
                          std::initializer_list<int> holds = {});
    /// One half of the backward of a module that is split.
    ProgramStep& backwardHalf(Half half, int module, std::initializer_list<int> reads, std::initializer_list<int> makes,
                              std::initializer_list<int> holds = {});
    /// A collective as a step of its own. In place where it makes nothing: then on the first tensor that it reads.
    void forwardCollective(int collective, std::initializer_list<int> reads, std::initializer_list<int> makes,
                           Beside beside = Beside::Nothing);
    void backwardCollective(int collective, std::initializer_list<int> reads, std::initializer_list<int> makes,
                            Beside beside = Beside::Nothing);
    /// Neighbouring steps bound by memory run as one kernel (torch.compile). `products`: which modules are not.
    void fusePointwise(std::vector<bool> products)
    {
        m_fused = true;
        m_products = std::move(products);
    }
    /// Whether any backward step reads it.
    bool usedInBackward(int slot) const;
    /// Marks a tensor as kept by selective checkpointing.
    void keepByPolicy(int slot) { m_policy[static_cast<std::size_t>(slot)] = true; }

    /// Marks a tensor that somebody outside the layer holds on to: no pass drops it.
    void handOver(int slot) { m_heldSlot = slot; }
    int heldSlot() const { return m_heldSlot; }

    /// The gradient of the input is made in the input's own buffer, which no pass drops.
    void gradientInPlace() { m_gradientInPlace = true; }
    int gradientSlot() const { return m_gradientInPlace ? kInput : kGradInput; }

    /// Works out the passes; call once after all steps.
    /// `handsOn`: recomputation makes the output too, for the layer behind that is recomputed with it.
    void compile(KeepMode mode, RecomputeRange range = RecomputeRange::Whole, bool handsOn = false);

    const ProgramPass& forwardPass() const { return m_forwardPass; }
    const ProgramPass& recomputePass() const { return m_recomputePass; } // empty in mode Keep
    const ProgramPass& backwardPass() const { return m_backwardPass; }
    bool keepsInput() const { return m_keepsInput; }
    std::size_t slots() const { return m_classes.size(); }
    BufferClassId classOf(int slot) const { return m_classes[static_cast<std::size_t>(slot)]; }

private:
    using Steps = std::vector<ProgramStep>;
    std::vector<int> existing(std::initializer_list<int> wanted) const;
    ProgramStep step(int module, std::initializer_list<int> reads, std::initializer_list<int> makes,
                     std::initializer_list<int> holds) const;
    ProgramPass passOf(const Steps& steps, const std::vector<bool>& keeps, const std::vector<bool>& present,
                       const std::vector<bool>& runs) const;
    void fuse(ProgramPass& pass, const Steps& steps, const std::vector<bool>& keeps) const;
    std::vector<bool> recomputed(const std::vector<bool>& saved, const std::vector<bool>& present,
                                 RecomputeRange range) const;

    std::vector<BufferClassId> m_classes;
    std::vector<bool> m_policy;
    Steps m_forward;
    Steps m_backward;
    bool m_fused = false;
    std::vector<bool> m_products; // by module
    ProgramPass m_forwardPass;
    ProgramPass m_recomputePass;
    ProgramPass m_backwardPass;
    bool m_keepsInput = false;
    int m_heldSlot = -1;
    bool m_gradientInPlace = false;
};

} // namespace shardwright
