#include "core/cli/long_run.hpp"

#include <csignal>

#include <unistd.h>

#include "core/cli/streams.hpp"

namespace shardwright::cli {

std::atomic<bool> stopRequested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

namespace {

constexpr const char* kStartAgain = "\r\033[K"; // to the first column, and what stood there goes

} // namespace

StopOnSignal::StopOnSignal()
{
    struct sigaction action {};
    action.sa_handler = [](int) { stopRequested = true; };
    sigemptyset(&action.sa_mask);
    action.sa_flags = static_cast<int>(SA_RESETHAND); // and no SA_RESTART: a waiting read returns
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
}

ProgressLine::ProgressLine(std::chrono::milliseconds pause) : m_terminal(::isatty(STDERR_FILENO) == 1), m_pause(pause)
{
}

ProgressLine::~ProgressLine()
{
    finish();
}

void ProgressLine::draw(const std::string& text)
{
    if (!m_terminal)
        return;
    printErr(kStartAgain + text);
    m_stands = true;
}

void ProgressLine::show(const std::string& text)
{
    const auto now = std::chrono::steady_clock::now();
    if (m_stands && now - m_last < m_pause)
        return;
    m_last = now;
    draw(text);
}

void ProgressLine::finish()
{
    if (m_stands)
        printErr("\n");
    m_stands = false;
}

void ProgressLine::finish(const std::string& text)
{
    draw(text);
    finish();
}

void ProgressLine::clear()
{
    if (m_stands)
        printErr(kStartAgain);
    m_stands = false;
}

} // namespace shardwright::cli
