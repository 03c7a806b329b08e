#pragma once

// A framework's rules: scenario -> schedule. One room per framework beside this file.

#include <memory>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/schedule.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

class ActivationModel;

/// The rules of one framework applied to one input. Building them works out structure and sizes; emit() writes the
/// schedule; resize() takes over other numbers under the same structure, which costs a hundred times less than
/// building.
class FrameworkRules {
public:
    virtual ~FrameworkRules() = default;

    const SizeTable& sizes() const { return m_sizes; }

    /// Initialisation (with every persistent buffer), the micro-steps of one optimizer step, the optimizer step, in
    /// segments, as the rank that needs the most memory sees it in steady state.
    virtual Schedule emit() const = 0;

    /// The same with what a run needs besides: stand-ins for the steps before the steady state (Segment::repeat).
    virtual Schedule emitToRun() const { return emit(); }

    /// Recomputes sizes for an input of the same model and equal structureKey().
    virtual void resize(const PlanInput& input) = 0;

    /// What fixes the structure besides the model, as text: inputs of equal keys give schedules that differ in sizes
    /// only, class by class.
    virtual std::string structureKey() const = 0;

    /// Parameters, gradients, master weights and optimizer states per GPU as partitioned (offloaded parts left out).
    virtual ModelStates modelStates() const = 0;

    /// Volume in units of Ψ that papers print for the strategy, and why the implementation differs, if it does.
    virtual double textbookPsi() const = 0;
    virtual std::string psiDifference() const { return {}; }

    /// Host memory per NODE while the model is built and loaded.
    virtual Bytes hostInitPeakPerNode() const = 0;

    virtual CheckpointSize checkpoint() const = 0;

    /// What the figures take for granted, and what they leave out.
    virtual std::vector<Note> assumptions() const { return {}; }
    virtual std::vector<Note> excluded() const { return {}; }

    /// The activations that its first size classes belong to; nothing where the rules have none. Their sizes all follow
    /// the tokens, which lets a closed form treat them as one.
    virtual const ActivationModel* activations() const { return nullptr; }

    /// Communicators that hold GPU memory outside the allocator.
    virtual int communicators() const { return 1; }

protected:
    SizeTable m_sizes;
};

/// Why a framework refuses a combination: reasons in its own terms; empty = possible. Of the whole model's input.
std::vector<std::string> refusals(const PlanInput& input);

/// The rules for an input that is not refused. Where it splits the model (needsSlices), that of one slice.
std::unique_ptr<FrameworkRules> makeRules(const PlanInput& input);

// One pair per room.
std::vector<std::string> ddpRefusals(const PlanInput& input);
std::unique_ptr<FrameworkRules> makeDdpRules(const PlanInput& input);
std::vector<std::string> fsdp1Refusals(const PlanInput& input);
std::unique_ptr<FrameworkRules> makeFsdp1Rules(const PlanInput& input);
std::vector<std::string> fsdp2Refusals(const PlanInput& input);
std::unique_ptr<FrameworkRules> makeFsdp2Rules(const PlanInput& input);
std::vector<std::string> deepspeedRefusals(const PlanInput& input);
std::unique_ptr<FrameworkRules> makeDeepSpeedRules(const PlanInput& input);
std::vector<std::string> nativeRefusals(const PlanInput& input);
std::unique_ptr<FrameworkRules> makeNativeRules(const PlanInput& input);
std::vector<std::string> megatronRefusals(const PlanInput& input);
std::unique_ptr<FrameworkRules> makeMegatronRules(const PlanInput& input);

} // namespace shardwright
