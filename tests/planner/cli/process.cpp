#include "tests/planner/cli/process.hpp"
#include "core/json_cursor.hpp"
#include "tests/paths.hpp"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <sstream>
#include <thread>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace shardwright::testing {

namespace {

struct Pipe {
    Pipe()
    {
        if (::pipe2(ends, O_CLOEXEC) != 0)
            std::abort();
    }
    ~Pipe()
    {
        closeEnd(0);
        closeEnd(1);
    }
    void closeEnd(int end)
    {
        if (ends[end] >= 0)
            ::close(ends[end]);
        ends[end] = -1;
    }
    int ends[2] = {-1, -1};
};

void drain(int descriptor, std::string& text)
{
    char buffer[65536];
    for (;;) {
        const ssize_t count = ::read(descriptor, buffer, sizeof buffer);
        if (count > 0)
            text.append(buffer, static_cast<std::size_t>(count));
        else if (count == 0 || errno != EINTR)
            return;
    }
}

void feed(int descriptor, const std::string& text)
{
    std::size_t at = 0;
    while (at < text.size()) {
        const ssize_t count = ::write(descriptor, text.data() + at, text.size() - at);
        if (count <= 0)
            return; // the program ended without reading all of it
        at += static_cast<std::size_t>(count);
    }
}

[[noreturn]] void becomeProgram(const std::vector<std::string>& arguments, const RunOptions& options, Pipe& input,
                                Pipe& output, Pipe& error)
{
    if (::chdir(options.folder.c_str()) != 0)
        ::_exit(125);
    ::dup2(input.ends[0], STDIN_FILENO);
    ::dup2(error.ends[1], STDERR_FILENO);
    const int file = options.outputTo.empty() ? output.ends[1]
                                              : ::open(options.outputTo.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    ::dup2(file, STDOUT_FILENO);
    const rlimit largest{static_cast<rlim_t>(options.largestFile), static_cast<rlim_t>(options.largestFile)};
    if (options.largestFile > 0)
        ::setrlimit(RLIMIT_FSIZE, &largest);
    for (const auto& [name, value] : options.environment)
        ::setenv(name.c_str(), value.c_str(), 1);
    std::vector<char*> argv{const_cast<char*>("shardplan")};
    for (const std::string& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    ::execv(shardplanProgram(), argv.data());
    ::_exit(126);
}

} // namespace

Ran shardplan(const std::vector<std::string>& arguments, const RunOptions& options)
{
    std::signal(SIGPIPE, SIG_IGN); // a program that ends early must not end the test
    Pipe input;
    Pipe output;
    Pipe error;
    if (options.closedPipe)
        output.closeEnd(0); // before there is a child that might write sooner
    const pid_t child = ::fork();
    if (child == 0)
        becomeProgram(arguments, options, input, output, error);
    input.closeEnd(0);
    output.closeEnd(1);
    error.closeEnd(1);
    Ran ran;
    std::thread feeder([&] {
        feed(input.ends[1], options.input);
        input.closeEnd(1);
    });
    std::thread errors([&] { drain(error.ends[0], ran.err); });
    if (!options.closedPipe)
        drain(output.ends[0], ran.out);
    errors.join();
    feeder.join();
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    ran.exitCode = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return ran;
}

Json shardplanJson(const std::vector<std::string>& arguments, const RunOptions& options)
{
    const Ran ran = shardplan(arguments, options);
    EXPECT_EQ(ran.exitCode, 0) << ran.err;
    return Json::parse(ran.out, nullptr, /*allow_exceptions=*/false);
}

std::vector<std::string> lines(const std::string& text)
{
    std::vector<std::string> list;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);)
        list.push_back(line);
    return list;
}

} // namespace shardwright::testing
