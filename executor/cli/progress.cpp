#include "executor/cli/progress.hpp"

#include <csignal>

#include <unistd.h>

#include <fmt/format.h>

#include "executor/cli/output.hpp"

namespace shardwright::cli {

std::atomic<bool> stopRequested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

StopOnSignal::StopOnSignal()
{
    struct sigaction action {};
    action.sa_handler = [](int) { stopRequested = true; };
    sigemptyset(&action.sa_mask);
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
}

Progress::Progress() : m_shown(::isatty(STDERR_FILENO) == 1) {}

void Progress::show(const StepDone& done) const
{
    if (!m_shown)
        return;
    printErr(fmt::format("\rstep {}/{}  loss {:.4f}  {:.0f} tokens/s  device memory {}   ", done.step, done.steps,
                         done.loss, done.tokensPerSecond, formatBinary(done.peak)));
}

void Progress::finish() const
{
    if (m_shown)
        printErr("\n");
}

} // namespace shardwright::cli
