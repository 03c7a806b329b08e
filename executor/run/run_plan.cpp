#include "executor/run/run_plan.hpp"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <exception>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "executor/run/gather_text.hpp"
#include "executor/run/machine.hpp"
#include "executor/state/checkpoint.hpp"
#include "executor/state/durable_file.hpp"

namespace shardwright {

namespace {

/// Ends a rank between two operations because the run was stopped.
struct Stopped {};
constexpr const char* kStopped = "the run was stopped"; // what the others hear of it

/// The first failure of any rank, which is the cause of all others.
class FirstFailure {
public:
    void keep(std::exception_ptr failure, std::int64_t rank)
    {
        const std::lock_guard lock(m_mutex);
        if (m_failure == nullptr) {
            m_failure = std::move(failure);
            m_rank = rank;
        }
    }
    /// What a rank only hears of another one's failure; kept where nothing better comes.
    void keepEcho(std::exception_ptr failure)
    {
        const std::lock_guard lock(m_mutex);
        if (m_echo == nullptr)
            m_echo = std::move(failure);
    }
    void keepStop() { m_stopped = true; }
    bool stopped() const { return m_stopped && m_failure == nullptr; }

    /// Throws it with its rank's name, in its own type.
    void rethrow() const
    {
        if (m_failure == nullptr) {
            if (m_echo != nullptr && !m_stopped)
                std::rethrow_exception(m_echo);
            return;
        }
        const std::string rank = fmt::format("rank {}: ", m_rank);
        try {
            std::rethrow_exception(m_failure);
        } catch (const InputError&) {
            throw;
        } catch (const EnvironmentError& error) {
            throw EnvironmentError(rank + error.what());
        } catch (const OutOfMemory& error) {
            throw OutOfMemory(rank + error.what());
        } catch (const std::bad_alloc&) {
            throw EnvironmentError(rank + "this machine has no more memory");
        } catch (const std::exception& error) {
            throw std::runtime_error(rank + error.what());
        }
    }

private:
    std::mutex m_mutex;
    std::exception_ptr m_failure;
    std::exception_ptr m_echo;
    std::int64_t m_rank = -1;
    std::atomic<bool> m_stopped = false;
};

/// What a rank's thread leaves behind.
struct RankRun {
    RankMeasurement measurement;
    std::vector<double> losses;
    std::vector<double> seconds; // by step
    std::int64_t firstSteadyStep = 1;
    bool complete = false;
};

double medianOf(std::vector<double> values)
{
    if (values.empty())
        return 0;
    std::sort(values.begin(), values.end());
    const std::size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

class Run {
public:
    Run(const ExecutablePlan& plan, const RunSettings& settings, const std::vector<std::unique_ptr<Transport>>& ends)
        : m_plan(plan), m_settings(settings), m_ends(ends), m_runs(ends.size())
    {
        const std::int64_t vocab = plan.model.architecture.vocab;
        m_weights = settings.weights.empty() ? seededWeights(plan.model, settings.seed)
                                             : safetensorsWeights(plan.model, settings.weights);
        remarkUnused();
        if (!settings.checkpoints.empty())
            requireWritableFolder(settings.checkpoints);
        m_batches = settings.batches        ? settings.batches
                    : settings.text.empty() ? syntheticTokens(vocab, settings.seed)
                                            : textBytes(settings.text, vocab, plan.training.sequenceLength);
    }

    Measurement run()
    {
        std::vector<std::thread> threads;
        try {
            for (std::size_t i = 1; i < m_ends.size(); ++i)
                threads.emplace_back([this, i] { rank(i); });
        } catch (const std::system_error& error) { // those that run end when they are told
            const EnvironmentError failure(fmt::format("only {} of {} ranks got a thread of this machine: {}",
                                                       threads.size() + 1, m_ends.size(), error.code().message()));
            m_failure.keep(std::make_exception_ptr(failure), static_cast<std::int64_t>(threads.size()) + 1);
            m_ends.front()->abort(failure.what());
        }
        if (threads.size() + 1 == m_ends.size())
            rank(0);
        for (std::thread& thread : threads)
            thread.join();
        m_failure.rethrow();
        return measurement();
    }

private:
    void remarkUnused() const
    {
        const std::vector<std::string> unused = m_weights->unused();
        constexpr std::size_t kMostNamed = 5;
        if (unused.empty() || !m_settings.remark)
            return;
        const std::size_t named = std::min(kMostNamed, unused.size());
        m_settings.remark(fmt::format(
            "{}: {} tensors are none of the model's and are not used: {}{}", m_settings.weights, unused.size(),
            fmt::join(unused.begin(), unused.begin() + static_cast<std::ptrdiff_t>(named), ", "),
            named < unused.size() ? " ..." : ""));
    }
    bool stopAsked() const { return m_settings.stop != nullptr && m_settings.stop->load(std::memory_order_relaxed); }

    void rank(std::size_t index)
    {
        Transport& transport = *m_ends[index];
        try {
            train(transport, index);
        } catch (const Stopped&) {
            m_failure.keepStop();
            transport.abort(kStopped);
        } catch (const TransportError& error) {
            if (stopAsked() || std::string_view(error.what()) == kStopped)
                m_failure.keepStop();
            else
                m_failure.keepEcho(std::current_exception());
            transport.abort("another rank has failed");
        } catch (const std::exception& error) {
            m_failure.keep(std::current_exception(), transport.rank());
            transport.abort(fmt::format("rank {}: {}", transport.rank(), error.what()));
        }
    }

    void train(Transport& transport, std::size_t index)
    {
        RankRun& mine = m_runs[index];
        ExecutorOptions options = m_settings.executor;
        options.seed = m_settings.seed;
        RankExecutor executor(m_plan, options, transport, *m_weights, *m_batches);
        const auto between = [this] {
            if (stopAsked())
                throw Stopped();
        };
        executor.initialise(between);
        between();
        if (!m_settings.resume.empty())
            resume(executor);
        mine.firstSteadyStep = executor.firstSteadyStep();
        try {
            for (std::int64_t step = 1; step <= m_settings.steps; ++step) {
                const auto began = std::chrono::steady_clock::now();
                mine.losses.push_back(executor.step(between));
                const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
                mine.seconds.push_back(took.count());
                report(executor, mine, step, index);
                checkpoint(executor, step, transport);
            }
            mine.complete = true;
            mine.measurement = executor.measurement();
        } catch (const Stopped&) {
            mine.measurement = executor.measurement();
            throw;
        } catch (const TransportError&) {
            mine.measurement = executor.measurement(); // of what was done before somebody stopped
            throw;
        }
    }

    void report(const RankExecutor& executor, const RankRun& mine, std::int64_t step, std::size_t index) const
    {
        if (index != 0 || !m_settings.afterStep)
            return;
        const double seconds = mine.seconds.back();
        const RankMeasurement measured = executor.measurement();
        m_settings.afterStep({step, m_settings.steps, mine.losses.back(), seconds, tokensPerStep() / seconds,
                              measured.places.empty() ? Bytes(0) : measured.places.front().peak});
    }

    void resume(RankExecutor& executor) const
    {
        TrainingState state = executor.state();
        loadCheckpoint(checkpointFolder(m_settings.resume), m_plan.model, state);
        executor.restore(state);
    }

    void checkpoint(RankExecutor& executor, std::int64_t step, Transport& transport) const
    {
        if (m_settings.checkpoints.empty())
            return;
        const bool due = m_settings.checkpointEvery > 0 && step % m_settings.checkpointEvery == 0;
        if (!due && step != m_settings.steps)
            return;
        const TrainingState state = executor.state();
        saveCheckpoint(m_settings.checkpoints + "/" + stepFolder(state.step), m_plan.model, m_plan.modelConfig, state,
                       transport);
    }

    double tokensPerStep() const
    {
        return static_cast<double>(m_plan.training.tokensPerMicroBatch()) *
               static_cast<double>(m_plan.training.gradientAccumulation) * static_cast<double>(m_plan.ranks);
    }

    /// Of the ranks of this process.
    Measurement measured() const
    {
        Measurement result;
        result.plan = m_plan.file;
        result.scenario = m_plan.scenario;
        result.strategy = m_plan.strategy.name;
        result.transport = m_ends.front()->name();
        result.device = "host";
        result.machine = fmt::format("{}, {} cores", processorName(), std::thread::hardware_concurrency());
        result.date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
        result.complete = !m_failure.stopped();
        result.losses = m_runs.front().losses;
        result.stepSeconds = m_runs.front().seconds;
        result.firstSteadyStep = m_runs.front().firstSteadyStep;
        for (const RankRun& each : m_runs) {
            takeSlower(result, each.losses.size(), each.seconds);
            result.ranks.push_back(each.measurement);
        }
        return result;
    }

    /// Steps count that all have done, each as long as the slowest rank took.
    static void takeSlower(Measurement& result, std::size_t losses, const std::vector<double>& seconds)
    {
        const std::size_t steps = std::min({result.losses.size(), result.stepSeconds.size(), losses, seconds.size()});
        result.losses.resize(steps);
        result.stepSeconds.resize(steps);
        for (std::size_t step = 0; step < steps; ++step)
            result.stepSeconds[step] = std::max(result.stepSeconds[step], seconds[step]);
    }

    /// Of all processes, on each of them.
    Measurement gathered(Measurement own) const
    {
        Transport& transport = *m_ends.front();
        const bool alone = static_cast<std::int64_t>(m_ends.size()) == transport.ranks() || transport.name() == "solo";
        if (alone || !own.complete)
            return own;
        const std::vector<std::string> texts = gatherText(toJson(own).dump(), transport);
        own.ranks.clear();
        for (const std::string& text : texts) {
            const Measurement other = measurementFromText(text, "measurement of another process");
            takeSlower(own, other.losses.size(), other.stepSeconds);
            own.ranks.insert(own.ranks.end(), other.ranks.begin(), other.ranks.end());
        }
        return own;
    }

    Measurement measurement() const
    {
        Measurement result = gathered(measured());
        result.steps = static_cast<std::int64_t>(result.losses.size());
        // The first step makes lazy buffers and meets cold caches.
        const auto first = result.stepSeconds.begin() + (result.steps > 1 ? 1 : 0);
        result.secondsPerStep = medianOf({first, result.stepSeconds.end()});
        result.tokensPerSecond = result.secondsPerStep > 0 ? tokensPerStep() / result.secondsPerStep : 0;
        return result;
    }

    const ExecutablePlan& m_plan;
    const RunSettings& m_settings;
    const std::vector<std::unique_ptr<Transport>>& m_ends;
    std::unique_ptr<WeightSource> m_weights;
    std::shared_ptr<const BatchSource> m_batches;
    std::vector<RankRun> m_runs; // by end
    FirstFailure m_failure;
};

} // namespace

Measurement runPlan(const ExecutablePlan& plan, const RunSettings& settings,
                    const std::vector<std::unique_ptr<Transport>>& ends)
{
    if (const std::vector<std::string> refusals = executorRefusals(plan); !refusals.empty()) {
        Findings findings(plan.file);
        for (const std::string& reason : refusals)
            findings.add("", reason);
        findings.throwIfAny();
    }
    return Run(plan, settings, ends).run();
}

} // namespace shardwright
