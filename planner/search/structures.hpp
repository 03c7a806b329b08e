#pragma once

// The compiled structures that candidates share: closed forms of memory and traffic, step forms of time. Compiling one
// takes milliseconds, asking one microseconds.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "planner/parallelism/pipeline_time.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/search/candidates.hpp"
#include "planner/search/stage_floors.hpp"
#include "planner/step_form.hpp"

namespace shardwright::search {

struct Structure {
    explicit Structure(std::unique_ptr<FrameworkRules> rules, const Model& model) : closed(std::move(rules), model) {}

    /// Compiled when first asked for.
    StepForm& step()
    {
        if (!m_step)
            m_step.emplace(closed.rules());
        return *m_step;
    }

    ClosedForm closed;
    std::int64_t used = 0; // when it was last asked for

private:
    std::optional<StepForm> m_step;
};

/// A candidate as the ranks of one pipeline stage see it, or as all do where it has none. Hardly two candidates have
/// pipelines of the same structure, so their schedules are not compiled: what is asked of them reads them once or
/// twice.
struct Part {
    PlanInput input;
    Structure* structure;       // nothing for a pipeline stage
    const StageSchedule* stage; // nothing elsewhere
};

/// A candidate's pipeline.
struct Pipeline {
    const std::vector<ModelSlice>* slices = nullptr;
    std::vector<StageSchedule> schedules;
    std::optional<std::optional<StepTime>> step; // once it was asked for
};

/// What a part holds whatever the micro-batch and the checkpointing.
struct Held {
    Bytes states;        // all model states, and the overheads
    Bytes duringForward; // of that, what is there in every forward pass: gradients only where they stay for good
};

/// Not thread-safe: one per thread. All candidates are of one model.
class Structures {
public:
    /// The parts of a candidate that is not refused, one for each stage that differs, each structure with the sizes of
    /// this candidate. They hold until the next call.
    const std::vector<Part>& partsOf(const PlanInput& input, const Assignment& assignment);

    /// The pipeline of the candidate last asked for by partsOf, which has one.
    const Pipeline& pipeline() const { return m_pipeline; }
    /// Its step, simulated when first asked for; nothing where the cluster lacks what an operation runs on.
    const std::optional<StepTime>& pipelineStepOf(const PlanInput& input);

    /// The parts of the model alone.
    const std::vector<ModelSlice>& slicesOf(const PlanInput& input);

    /// By slice, of a candidate that is not refused.
    const std::vector<Held>& heldBy(const PlanInput& input, const Assignment& assignment);

    /// Of a candidate that is not refused; they hold until the next call.
    const StageFloors& floorsOf(const PlanInput& input)
    {
        return m_floors.of(input, needsSlices(input) ? &slicesOf(input) : nullptr);
    }

private:
    using Key = std::vector<std::int64_t>;
    using StrategyKey = std::array<std::int64_t, 13>;
    Structure& structureOf(const PlanInput& part, const Key& key);
    void dropOldest();

    // Structures that candidates of a key have: of equal options but for numbers of ranks and batches, which seldom
    // change what happens in a step.
    std::map<Key, std::vector<std::unique_ptr<Structure>>> m_structures;
    std::size_t m_count = 0;
    std::int64_t m_turn = 0;
    std::map<Key, std::vector<ModelSlice>> m_slices;
    std::map<StrategyKey, std::vector<Held>> m_held;
    std::vector<Part> m_parts;
    Pipeline m_pipeline;
    FloorTable m_floors;
};

} // namespace shardwright::search
