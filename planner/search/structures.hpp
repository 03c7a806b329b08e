#pragma once

// The compiled structures that candidates share: closed forms of memory and traffic, step forms of time. Compiling one
// takes milliseconds, asking one microseconds. A schedule that is read without being compiled takes half a millisecond.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "planner/parallelism/pipeline_time.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/search/candidates.hpp"
#include "planner/search/collective_sums.hpp"
#include "planner/search/stage_floors.hpp"
#include "planner/step_form.hpp"

namespace shardwright::search {

struct Structure {
    Structure(std::unique_ptr<FrameworkRules> rules, const PlanInput& part, std::optional<CollectiveSums> sums)
        : closed(std::move(rules), part.model), collectives(std::move(sums)),
          m_inOrder(part.cluster.gpu.isHostProcessor())
    {
    }

    /// Compiled when first asked for.
    StepForm& step()
    {
        if (!m_step)
            m_step.emplace(closed.rules(), m_inOrder);
        return *m_step;
    }

    ClosedForm closed;
    std::optional<CollectiveSums> collectives; // where they were asked for
    std::int64_t used = 0;                     // when it was last asked for

private:
    bool m_inOrder;
    std::optional<StepForm> m_step;
};

/// A candidate as the ranks of one pipeline stage see it, or as all do where it has none: with the structure that it
/// has, where so many candidates have it that compiling it pays; with its schedule elsewhere, which is then read once
/// or twice. Hardly two candidates have pipelines of the same structure: theirs are never compiled.
struct Part {
    PlanInput input;
    Structure* structure;       // or nothing, and
    const StageSchedule* stage; // what its rank runs
};

/// A candidate's pipeline.
struct Pipeline {
    const std::vector<ModelSlice>* slices = nullptr;
    std::vector<StageSchedule> schedules;
};

/// What a part holds whatever the micro-batch and the checkpointing.
struct Held {
    Bytes states;        // all model states, and the overheads
    Bytes duringForward; // of that, what is there in every forward pass: gradients only where they stay for good
};

/// Not thread-safe: one per thread. All candidates are of one model.
class Structures {
public:
    // Candidates of a structure from which on compiling it pays: it takes as long as reading so many schedules.
    static constexpr std::int64_t kWorthCompiling = 8;

    explicit Structures(std::int64_t worthCompiling = kWorthCompiling) : m_worthCompiling(worthCompiling) {}

    /// Whether a candidate without a pipeline is still wanted when the collectives beside its computing take so many
    /// seconds of a step: known before its schedule is written where another one had its structure.
    using IsWorthIt = std::function<bool(double)>;

    /// The parts of a candidate that is not refused, one for each stage that differs, each structure with the sizes of
    /// this candidate; none where it is not worth it. They hold until the next call.
    const std::vector<Part>& partsOf(const PlanInput& input, const Assignment& assignment,
                                     const IsWorthIt& isWorthIt = {});

    /// The pipeline of the candidate last asked for by partsOf, which has one.
    const Pipeline& pipeline() const { return m_pipeline; }
    /// The parts of the model alone.
    const std::vector<ModelSlice>& slicesOf(const PlanInput& input);

    /// By slice, of a candidate that is not refused: of so many of its slices at least.
    const std::vector<Held>& heldBy(const PlanInput& input, const Assignment& assignment,
                                    std::size_t slices = SIZE_MAX);

    /// Of a candidate that is not refused; they hold until the next call.
    const StageFloors& floorsOf(const PlanInput& input, const Assignment& assignment);

private:
    using Key = std::vector<std::int64_t>;
    using StrategyKey = std::array<std::int64_t, 13>;
    /// A structure that is not compiled.
    struct Seen {
        std::int64_t candidates = 0;
        std::optional<CollectiveSums> collectives;
    };
    /// Candidates of equal options but for numbers of ranks and batches, which seldom change what happens in a step.
    struct Alike {
        std::vector<std::unique_ptr<Structure>> compiled; // those asked for last come first
        std::unordered_map<std::string, Seen> seen;       // other structures, by their keys
    };
    /// What a strategy holds and sends whatever the micro-batch and the checkpointing: by slice, of those asked for.
    struct OfStrategy {
        std::vector<Held> held;
        StepCollectives collectives;
        const std::vector<ModelSlice>* slices = nullptr; // where it needs them
    };
    void addPart(const PlanInput& part, const Key& key, const IsWorthIt& isWorthIt);
    OfStrategy& strategyOf(const Assignment& assignment);
    void dropOldest();

    std::int64_t m_worthCompiling;
    std::map<Key, Alike> m_alike;
    std::size_t m_compiled = 0;
    std::size_t m_seen = 0;
    std::int64_t m_turn = 0;
    StageSchedule m_schedule; // of a candidate whose structure is not compiled
    std::map<Key, std::vector<ModelSlice>> m_slices;
    std::map<StrategyKey, OfStrategy> m_strategies;
    std::pair<const StrategyKey, OfStrategy>* m_lastStrategy = nullptr; // candidates come strategy by strategy
    std::vector<Part> m_parts;
    Pipeline m_pipeline;
    FloorTable m_floors;
};

} // namespace shardwright::search
