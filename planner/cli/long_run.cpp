#include "planner/cli/long_run.hpp"

#include <csignal>

#include <unistd.h>

#include "planner/cli/output.hpp"

namespace shardwright::cli {

std::atomic<bool> stopRequested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

StopOnSignal::StopOnSignal()
{
    struct sigaction action {};
    action.sa_handler = [](int) { stopRequested = true; };
    sigemptyset(&action.sa_mask);
    action.sa_flags = static_cast<int>(SA_RESETHAND); // and no SA_RESTART: a waiting read returns
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
}

Progress::Progress() : m_shown(::isatty(STDERR_FILENO) == 1) {}

void Progress::show(const std::string& text)
{
    constexpr std::chrono::milliseconds kPause(100);
    const auto now = std::chrono::steady_clock::now();
    if (!m_shown || now - m_last < kPause)
        return;
    m_last = now;
    printErr("\r" + text);
}

void Progress::finish(const std::string& text) const
{
    if (m_shown)
        printErr("\r" + text + "\n");
}

} // namespace shardwright::cli
