// Runs of rank threads in which one rank stands still or fails: all end with its name.

#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "executor/comm/transports.hpp"
#include "executor/run/run_plan.hpp"
#include "tests/paths.hpp"

namespace shardwright {

namespace {

using namespace std::chrono_literals;

ExecutablePlan shipped(const std::string& name)
{
    return readPlanFile(inSource("scenarios/validation/" + name + ".plan.json"));
}

/// Does something in the second step of one rank.
class Disturbed final : public BatchSource {
public:
    Disturbed(const ExecutablePlan& plan, std::int64_t rank, std::function<void()> disturbance)
        : m_tokens(syntheticTokens(plan.model.architecture.vocab, 1)),
          m_at((plan.ranks * plan.training.gradientAccumulation + rank) * plan.training.microBatch),
          m_disturbance(std::move(disturbance))
    {
    }
    void read(std::int64_t index, std::int64_t length, std::int64_t* tokens, std::int64_t* labels) const override
    {
        if (index == m_at)
            m_disturbance();
        m_tokens->read(index, length, tokens, labels);
    }

private:
    std::unique_ptr<BatchSource> m_tokens;
    std::int64_t m_at;
    std::function<void()> m_disturbance;
};

std::string failure(const ExecutablePlan& plan, std::int64_t rank, const std::function<void()>& disturbance,
                    const ThreadTransportOptions& options = {})
{
    RunSettings settings;
    settings.steps = 1000000;
    settings.batches = std::make_shared<Disturbed>(plan, rank, disturbance);
    try {
        runPlan(plan, settings, makeThreadTransports(static_cast<int>(plan.ranks), options));
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

TEST(RunFaults, ARankThatStandsStillIsNamedWithWhatTheOthersWaitFor)
{
    ThreadTransportOptions impatient;
    impatient.timeLimit = 400ms;
    for (const char* name : {"ddp-4-ranks", "fsdp1-hybrid-shard", "fsdp2-hybrid-shard", "zero3-buckets", "mics"}) {
        const ExecutablePlan plan = shipped(name);
        for (const std::int64_t rank : {std::int64_t{0}, plan.ranks - 1}) {
            const std::string said = failure(
                plan, rank, [] { std::this_thread::sleep_for(1500ms); }, impatient);
            EXPECT_NE(said.find("rank " + std::to_string(rank) + " did not come to "), std::string::npos)
                << name << ": " << said;
            EXPECT_NE(said.find("within 0.4 s"), std::string::npos) << name << ": " << said;
        }
    }
}

TEST(RunFaults, ARankThatThrowsEndsAllWithItsCause)
{
    for (const char* name : {"ddp-4-ranks", "fsdp1-hybrid-shard", "zero3-buckets"})
        for (const std::int64_t rank : {0, 3}) {
            const std::string prefix = "rank " + std::to_string(rank) + ": ";
            const ExecutablePlan plan = shipped(name);
            EXPECT_EQ(failure(plan, rank, [] { throw EnvironmentError("the disk is gone"); }),
                      prefix + "the disk is gone");
            EXPECT_EQ(failure(plan, rank, [] { throw std::bad_alloc(); }), prefix + "this machine has no more memory");
        }
}

} // namespace

} // namespace shardwright
