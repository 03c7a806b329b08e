#include "planner/search/engine.hpp"

#include <exception>
#include <thread>
#include <tuple>

#include "core/units.hpp"

namespace shardwright::search {

namespace {

bool isSet(const std::atomic<bool>* flag)
{
    return flag != nullptr && flag->load(std::memory_order_relaxed);
}

struct Node {
    Score floor;
    Path path;
};

bool sooner(const Node& left, const Node& right)
{
    return std::tie(left.floor, left.path) < std::tie(right.floor, right.path);
}

/// The children that are possible, the most promising first.
std::vector<Node> childrenOf(Explorer& explorer, const Path& path)
{
    std::vector<Node> children;
    const std::size_t choices = explorer.choices(path);
    children.reserve(choices);
    Path child = path;
    for (std::size_t i = 0; i < choices; ++i) {
        child.push(i);
        if (const auto floor = explorer.floor(child))
            children.push_back({*floor, child});
        child.pop();
    }
    std::sort(children.begin(), children.end(), sooner);
    return children;
}

/// One subtree, depth first.
class Descent {
public:
    Descent(Explorer& explorer, Archive archive, const Options& options)
        : m_explorer(explorer), m_archive(std::move(archive)), m_options(options)
    {
    }

    void visit(const Node& node)
    {
        if (isSet(m_options.stop) || (m_options.anyWillDo && !m_archive.found().empty()))
            return;
        if (!m_options.everything && !m_archive.admits(node.floor, node.path)) {
            m_counts.beaten += candidatesBelow(m_explorer, node.path);
            return;
        }
        if (m_explorer.complete(node.path)) {
            ++m_counts.evaluated;
            if (const auto score = m_explorer.evaluate(node.path, m_archive))
                m_archive.insert({*score, node.path});
            return;
        }
        for (const Node& child : childrenOf(m_explorer, node.path))
            visit(child);
    }

    const Archive& archive() const { return m_archive; }
    const Counts& counts() const { return m_counts; }

private:
    Explorer& m_explorer;
    Archive m_archive;
    Counts m_counts;
    const Options& m_options;
};

// The first rounds are short, so that later ones know good candidates: planning one takes longer than seeing that
// several are beaten.
constexpr std::size_t kLongestRound = 256;

/// Subtrees of the round that begins after `done` of them, `before` having been in the one before it.
std::size_t lengthOfRound(std::size_t done, std::size_t before)
{
    constexpr std::size_t kPromising = 16;
    return done == 0 ? 1 : done < kPromising ? 2 : std::min(2 * before, kLongestRound);
}

/// Calls work(worker, index) for every index below `count`, stretches of them on as many threads as there are workers.
/// What the first worker that fails throws is thrown on.
template <typename Work> void shareOut(std::size_t workers, std::size_t count, std::size_t stretch, const Work& work)
{
    workers = std::min(workers, (count + stretch - 1) / stretch);
    std::vector<std::exception_ptr> failures(std::max<std::size_t>(1, workers));
    std::atomic<std::size_t> next = 0;
    const auto run = [&](std::size_t worker) {
        try {
            for (std::size_t begin = next.fetch_add(stretch); begin < count; begin = next.fetch_add(stretch))
                for (std::size_t i = begin; i < std::min(begin + stretch, count); ++i)
                    work(worker, i);
        } catch (...) {
            failures[worker] = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> others;
    for (std::size_t worker = 1; worker < workers; ++worker)
        others.emplace_back(run, worker);
    run(0);
    for (std::thread& other : others)
        other.join();
    for (const std::exception_ptr& failure : failures)
        if (failure)
            std::rethrow_exception(failure);
}

/// The tree cut into subtrees, the most promising first.
std::vector<Node> cut(const std::vector<std::unique_ptr<Explorer>>& explorers, std::size_t wanted)
{
    constexpr std::size_t kStretch = 64; // neighbours have much in common, which one explorer works out once
    std::vector<Node> nodes{{Score{}, Path{}}};
    for (bool grown = true; grown && nodes.size() < wanted;) {
        std::vector<std::vector<Node>> children(nodes.size());
        std::atomic<bool> any = false;
        shareOut(explorers.size(), nodes.size(), kStretch, [&](std::size_t worker, std::size_t i) {
            if (explorers[worker]->complete(nodes[i].path)) {
                children[i] = {nodes[i]};
                return;
            }
            any = true;
            children[i] = childrenOf(*explorers[worker], nodes[i].path);
        });
        grown = any;
        nodes.clear();
        for (const std::vector<Node>& of : children)
            nodes.insert(nodes.end(), of.begin(), of.end());
    }
    std::sort(nodes.begin(), nodes.end(), sooner);
    return nodes;
}

class Rounds {
public:
    Rounds(const std::vector<std::unique_ptr<Explorer>>& explorers, const Wanted& wanted, const Options& options)
        : m_explorers(explorers), m_options(options), m_outcome{Archive(wanted), {}, true}
    {
    }

    Outcome run()
    {
        m_nodes = cut(m_explorers, m_options.subtrees);
        std::size_t length = 0;
        for (std::size_t begin = 0; begin < m_nodes.size() && !stopped() && !isEnough(); begin += length) {
            length = lengthOfRound(begin, length);
            round(begin, std::min(begin + length, m_nodes.size()));
        }
        m_outcome.proven = !stopped();
        return std::move(m_outcome);
    }

private:
    struct Result {
        std::vector<Found> found;
        Counts counts;
    };

    bool stopped() const { return isSet(m_options.stop); }
    bool isEnough() const { return m_options.anyWillDo && !m_outcome.archive.found().empty(); }

    void round(std::size_t begin, std::size_t end)
    {
        std::vector<Result> results(end - begin);
        shareOut(m_explorers.size(), end - begin, 1, [&](std::size_t worker, std::size_t i) {
            Descent descent(*m_explorers[worker], m_outcome.archive, m_options);
            descent.visit(m_nodes[begin + i]);
            results[i] = {descent.archive().found(), descent.counts()};
            if (worker == 0 && m_options.progress)
                m_options.progress(begin + i + 1, m_nodes.size(), descent.archive());
        });
        for (const Result& result : results) {
            for (const Found& found : result.found)
                m_outcome.archive.insert(found);
            m_outcome.counts.evaluated += result.counts.evaluated;
            m_outcome.counts.beaten += result.counts.beaten;
        }
    }

    const std::vector<std::unique_ptr<Explorer>>& m_explorers;
    const Options& m_options;
    Outcome m_outcome;
    std::vector<Node> m_nodes;
};

} // namespace

Outcome explore(const std::vector<std::unique_ptr<Explorer>>& explorers, const Wanted& wanted, const Options& options)
{
    return Rounds(explorers, wanted, options).run();
}

std::int64_t candidatesBelow(Explorer& explorer, const Path& path)
{
    if (explorer.complete(path))
        return 1;
    const std::size_t choices = explorer.choices(path);
    if (choices == 0)
        return 0;
    Path child = path;
    child.push(0);
    if (explorer.complete(child))
        return static_cast<std::int64_t>(choices); // the last axis
    std::int64_t count = 0;
    for (std::size_t i = 0; i < choices; ++i) {
        child = path;
        child.push(i);
        count = checkedAdd(count, candidatesBelow(explorer, child));
    }
    return count;
}

} // namespace shardwright::search
