#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "planner/published/ledger.hpp"
#include "planner/published/published_files.hpp"

namespace shardwright {

namespace fs = std::filesystem;

namespace {

struct Task {
    std::string source;
    Scenario scenario;
    std::vector<LedgerRow> rows; // the answer
};

void predict(Task& task)
{
    std::vector<FigureComparison> figures = comparePublished(task.scenario);
    for (FigureComparison& figure : figures) {
        const auto strategy =
            std::find_if(task.scenario.strategies.begin(), task.scenario.strategies.end(),
                         [&](const Strategy& candidate) { return candidate.name == figure.strategy; });
        task.rows.push_back({task.source, stepSettingOf(*strategy, task.scenario.cluster), std::move(figure)});
    }
}

/// Works through the tasks on all cores. What a task throws ends the run and is thrown by run().
class Workers {
public:
    explicit Workers(std::vector<Task>& tasks) : m_tasks(tasks) {}

    /// Whether it came to the end.
    bool run(const LedgerProgress& progress)
    {
        const std::size_t cores = std::max(1U, std::thread::hardware_concurrency());
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < std::min(cores, m_tasks.size()); ++i)
            threads.emplace_back([this] { work(); });
        m_running = threads.size();
        watch(progress);
        for (std::thread& thread : threads)
            thread.join();
        if (m_error)
            std::rethrow_exception(m_error);
        return !m_stop;
    }

private:
    void work()
    {
        for (std::size_t task = m_next++; task < m_tasks.size() && !m_stop; task = m_next++) {
            try {
                predict(m_tasks[task]);
                ++m_done;
            } catch (...) {
                const std::lock_guard<std::mutex> lock(m_mutex);
                if (!m_error)
                    m_error = std::current_exception();
                m_stop = true;
            }
        }
        const std::lock_guard<std::mutex> lock(m_mutex);
        ++m_ended;
        m_changed.notify_one();
    }

    void watch(const LedgerProgress& progress)
    {
        constexpr std::chrono::milliseconds kPause(50);
        for (bool ended = false; !ended;) {
            if (progress && !progress(m_done, static_cast<std::int64_t>(m_tasks.size())))
                m_stop = true;
            std::unique_lock<std::mutex> lock(m_mutex);
            ended = m_changed.wait_for(lock, kPause, [this] { return m_ended == m_running; });
        }
    }

    std::vector<Task>& m_tasks;
    std::atomic<std::size_t> m_next{0};
    std::atomic<std::int64_t> m_done{0};
    std::atomic<bool> m_stop{false};
    std::mutex m_mutex; // of the next three
    std::condition_variable m_changed;
    std::size_t m_ended = 0;
    std::exception_ptr m_error;
    std::size_t m_running = 0; // set before it is read, by the one thread that does
};

} // namespace

std::vector<std::string> ledgerFiles()
{
    std::vector<std::string> files;
    for (const std::string& file : publishedFiles())
        if (fs::path(file).parent_path().filename() == "published")
            files.push_back(file);
    return files;
}

std::string ledgerSourceName(const std::string& file)
{
    return fs::path(file).stem().string();
}

std::optional<Ledger> predictLedger(const std::vector<std::string>& files, const LedgerProgress& progress)
{
    std::vector<Task> tasks;
    for (const std::string& file : files)
        for (Scenario& scenario : readPublishedFile(file))
            tasks.push_back({ledgerSourceName(file), std::move(scenario), {}});
    if (!Workers(tasks).run(progress))
        return std::nullopt;
    std::vector<LedgerRow> rows;
    for (Task& task : tasks)
        std::move(task.rows.begin(), task.rows.end(), std::back_inserter(rows));
    return ledgerOf(std::move(rows));
}

} // namespace shardwright
