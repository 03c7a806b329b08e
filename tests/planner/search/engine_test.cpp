#include "planner/search/engine.hpp"

#include <cmath>
#include <random>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace shardwright::search {

namespace {

/// A made-up problem: every axis value adds its costs, pairs of neighbouring axes add more, some pairs are not
/// possible.
struct Problem {
    std::vector<std::size_t> axes; // values of each
    std::vector<std::vector<Score>> costs;
    std::uint32_t forbidden = 0; // seed of which pairs are not possible
    std::size_t subtrees = 1;    // what the engine cuts it into
    double tightness = 1;        // of floors: 1 as high as they can be told, 0 only what is sure already

    bool allowed(std::size_t axis, std::size_t before, std::size_t value) const
    {
        return forbidden == 0 || (before * 7 + value * 13 + axis * 5 + forbidden) % 6 != 0;
    }
};

class ProblemExplorer final : public Explorer {
public:
    explicit ProblemExplorer(const Problem& problem) : m_problem(problem) {}

    bool complete(const Path& path) const override { return path.size() == m_problem.axes.size(); }
    std::size_t choices(const Path& path) override { return m_problem.axes[path.size()]; }
    std::optional<Score> floor(const Path& path) override
    {
        auto sum = costOf(path);
        for (std::size_t axis = path.size(); sum && axis < m_problem.axes.size(); ++axis) {
            Score least{INFINITY, INFINITY};
            for (const Score& cost : m_problem.costs[axis])
                least = {std::min(least.first, cost.first), std::min(least.second, cost.second)};
            sum->first += m_problem.tightness * least.first;
            sum->second += m_problem.tightness * least.second;
        }
        if (!sum)
            rejected += candidatesBelow(*this, path);
        return sum;
    }
    std::optional<Score> evaluate(const Path& path, const Archive&) override { return costOf(path); }

    std::optional<Score> costOf(const Path& path) const
    {
        Score sum;
        for (std::size_t axis = 0; axis < path.size(); ++axis) {
            const Score& cost = m_problem.costs[axis][path[axis]];
            sum = {sum.first + cost.first, sum.second + cost.second};
            if (axis > 0 && !m_problem.allowed(axis, path[axis - 1], path[axis]))
                return std::nullopt;
        }
        return sum;
    }

    std::int64_t rejected = 0;

private:
    const Problem& m_problem;
};

/// What plain enumeration finds.
class Enumeration {
public:
    explicit Enumeration(const Problem& problem) : m_problem(problem), m_explorer(problem) { visit({}); }

    std::vector<Found> all;
    std::int64_t candidates = 0;

    std::vector<Found> best(std::size_t most) const
    {
        std::vector<Found> sorted = all;
        std::sort(sorted.begin(), sorted.end(), [](const Found& a, const Found& b) {
            return a.score != b.score ? a.score < b.score : a.path < b.path;
        });
        sorted.resize(std::min(most, sorted.size()));
        return sorted;
    }
    std::vector<Found> front() const
    {
        std::vector<Found> kept;
        for (const Found& each : all) {
            const bool out = std::any_of(all.begin(), all.end(), [&](const Found& other) {
                const bool noWorse = other.score.first <= each.score.first && other.score.second <= each.score.second;
                return noWorse && (other.score != each.score || other.path < each.path);
            });
            if (!out)
                kept.push_back(each);
        }
        std::sort(kept.begin(), kept.end(), [](const Found& a, const Found& b) { return a.score < b.score; });
        return kept;
    }

private:
    void visit(const Path& path)
    {
        if (path.size() == m_problem.axes.size()) {
            ++candidates;
            if (const auto score = m_explorer.costOf(path))
                all.push_back({*score, path});
            return;
        }
        for (std::size_t i = 0; i < m_problem.axes[path.size()]; ++i) {
            Path child = path;
            child.push(i);
            visit(child);
        }
    }

    const Problem& m_problem;
    ProblemExplorer m_explorer;
};

Problem anyProblem()
{
    Problem problem;
    std::mt19937 random(*rc::gen::resize(100, rc::gen::inRange(0, 1 << 30)));
    const auto below = [&](std::size_t end) { return random() % end; };
    problem.axes.resize(1 + below(5));
    for (std::size_t& values : problem.axes)
        values = 1 + below(5);
    problem.forbidden = static_cast<std::uint32_t>(below(20));
    for (const std::size_t values : problem.axes) {
        std::vector<Score> costs;
        for (std::size_t i = 0; i < values; ++i)
            costs.push_back({double(1 + below(4)), double(1 + below(4))}); // few distinct scores make ties
        problem.costs.push_back(costs);
    }
    problem.subtrees = 1 + below(30);
    problem.tightness = double(below(3)) / 2;
    return problem;
}

Outcome search(const Problem& problem, const Wanted& wanted, std::size_t threads, std::int64_t* rejected = nullptr)
{
    std::vector<std::unique_ptr<Explorer>> explorers;
    for (std::size_t i = 0; i < threads; ++i)
        explorers.push_back(std::make_unique<ProblemExplorer>(problem));
    Options options;
    options.subtrees = problem.subtrees;
    Outcome outcome = explore(explorers, wanted, options);
    if (rejected != nullptr)
        for (const auto& explorer : explorers)
            *rejected += dynamic_cast<const ProblemExplorer&>(*explorer).rejected;
    return outcome;
}

void expectSame(const std::vector<Found>& found, const std::vector<Found>& expected)
{
    RC_ASSERT(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
        RC_ASSERT(found[i].path == expected[i].path);
        RC_ASSERT(found[i].score == expected[i].score);
    }
}

RC_GTEST_PROP(SearchEngineTest, ARankingIsWhatEnumerationGives, ())
{
    const Problem problem = anyProblem();
    const std::size_t most = *rc::gen::inRange<std::size_t>(1, 8);
    expectSame(search(problem, {Wanted::Kind::Ranking, most}, 1).archive.found(), Enumeration(problem).best(most));
}

RC_GTEST_PROP(SearchEngineTest, AFrontIsWhatEnumerationGives, ())
{
    const Problem problem = anyProblem();
    expectSame(search(problem, {Wanted::Kind::Front, 0}, 1).archive.found(), Enumeration(problem).front());
}

RC_GTEST_PROP(SearchEngineTest, ThreadsChangeNothing, ())
{
    const Problem problem = anyProblem();
    const Wanted wanted{*rc::gen::arbitrary<bool>() ? Wanted::Kind::Ranking : Wanted::Kind::Front, 3};
    const Outcome one = search(problem, wanted, 1);
    const Outcome four = search(problem, wanted, 4);
    expectSame(four.archive.found(), one.archive.found());
    RC_ASSERT(four.counts.evaluated == one.counts.evaluated);
    RC_ASSERT(four.counts.beaten == one.counts.beaten);
}

RC_GTEST_PROP(SearchEngineTest, EveryCandidateIsEvaluatedBeatenOrRejected, ())
{
    const Problem problem = anyProblem();
    std::int64_t rejected = 0;
    const Outcome outcome = search(problem, {Wanted::Kind::Ranking, 2}, 2, &rejected);
    RC_ASSERT(outcome.counts.evaluated + outcome.counts.beaten + rejected == Enumeration(problem).candidates);
}

/// Costs that lead straight to the best: of 10^7 candidates few are looked at.
TEST(SearchEngineTest, AFloorThatTellsSavesTheWork)
{
    Problem problem;
    problem.axes.assign(7, 10);
    for (std::size_t axis = 0; axis < problem.axes.size(); ++axis) {
        std::vector<Score> costs;
        for (int i = 0; i < 10; ++i)
            costs.push_back({std::abs(i - double(axis)), 0});
        problem.costs.push_back(costs);
    }
    const Outcome outcome = search(problem, {Wanted::Kind::Ranking, 1}, 2);
    ASSERT_EQ(outcome.archive.found().size(), 1u);
    EXPECT_EQ(outcome.archive.found().front().score.first, 0);
    EXPECT_LT(outcome.counts.evaluated, 100);
    EXPECT_EQ(outcome.counts.evaluated + outcome.counts.beaten, 10000000);
}

TEST(SearchEngineTest, StoppedIsNotProven)
{
    Problem problem;
    problem.axes = {3, 3};
    problem.costs.assign(2, {{1, 1}, {2, 2}, {3, 3}});
    const std::atomic<bool> stop = true;
    std::vector<std::unique_ptr<Explorer>> explorers;
    explorers.push_back(std::make_unique<ProblemExplorer>(problem));
    Options options;
    options.stop = &stop;
    const Outcome outcome = explore(explorers, {}, options);
    EXPECT_FALSE(outcome.proven);
}

/// An explorer that fails in a thread fails the search, on the caller's thread.
class FailingExplorer final : public Explorer {
public:
    bool complete(const Path& path) const override { return path.size() == 2; }
    std::size_t choices(const Path&) override { return 4; }
    std::optional<Score> floor(const Path&) override { return Score{}; }
    std::optional<Score> evaluate(const Path&, const Archive&) override { throw std::runtime_error("no"); }
};

TEST(SearchEngineTest, AFailureReachesTheCaller)
{
    std::vector<std::unique_ptr<Explorer>> explorers;
    for (int i = 0; i < 3; ++i)
        explorers.push_back(std::make_unique<FailingExplorer>());
    EXPECT_THROW(explore(explorers, {}), std::runtime_error);
}

} // namespace

} // namespace shardwright::search
