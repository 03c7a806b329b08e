#include "tests/executor/cli/program.hpp"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tests/paths.hpp"

namespace shardwright::testing {

namespace {

constexpr int kCouldNotMount = 124; // exit codes that shardrun does not have
constexpr int kCouldNotStart = 125;
constexpr std::chrono::seconds kPatience(10);

bool writeText(const char* path, const std::string& text)
{
    const int file = ::open(path, O_WRONLY | O_CLOEXEC);
    const bool written = file >= 0 && ::write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    if (file >= 0)
        ::close(file);
    return written;
}

/// A file system that nobody else sees, and that goes with the process.
bool mountOver(const Surroundings& surroundings)
{
    const uid_t user = ::geteuid();
    const gid_t group = ::getegid();
    if (::unshare(user == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) != 0)
        return false;
    if (user != 0 && !(writeText("/proc/self/setgroups", "deny") &&
                       writeText("/proc/self/uid_map", "0 " + std::to_string(user) + " 1") &&
                       writeText("/proc/self/gid_map", "0 " + std::to_string(group) + " 1")))
        return false;
    const std::string size = "size=" + std::to_string(surroundings.mountBytes);
    return ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           ::mount("tmpfs", surroundings.mount.c_str(), "tmpfs", surroundings.mountReadOnly ? MS_RDONLY : 0,
                   size.c_str()) == 0;
}

void limit(int what, std::int64_t bytes)
{
    const rlimit value{static_cast<rlim_t>(bytes), static_cast<rlim_t>(bytes)};
    if (bytes > 0)
        ::setrlimit(what, &value);
}

void redirect(int stream, const std::string& path, bool closed)
{
    const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    ::dup2(file, stream);
    ::close(file);
    if (closed)
        ::close(stream);
}

std::string environmentOf(pid_t process)
{
    std::ifstream stream("/proc/" + std::to_string(process) + "/environ", std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

} // namespace

Program::Program(const std::vector<std::string>& arguments, const Surroundings& surroundings)
{
    std::vector<std::string> words;
    if (surroundings.mpiRanks > 0)
        words = {mpiexecProgram(), "-n", std::to_string(surroundings.mpiRanks), "--oversubscribe",
                 "--allow-run-as-root"};
    words.emplace_back(shardrunProgram());
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words)
        argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::string out = surroundings.outputTo.empty() ? m_folder.file("out") : surroundings.outputTo;
    m_process = ::fork();
    if (m_process != 0)
        return;
    if (!surroundings.mount.empty() && !mountOver(surroundings))
        ::_exit(kCouldNotMount);
    redirect(STDOUT_FILENO, out, surroundings.closedOutput);
    redirect(STDERR_FILENO, m_folder.file("err"), surroundings.closedError);
    ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
    limit(RLIMIT_FSIZE, surroundings.largestFile);
    limit(RLIMIT_AS, surroundings.addressSpace);
    limit(RLIMIT_CORE, 1);         // none: a file of a byte
    if (surroundings.mpiRanks > 0) // OpenMPI keeps memory of its own to the end of the process; all else counts
        ::setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    ::execv(argv.front(), argv.data());
    ::_exit(kCouldNotStart);
}

Program::~Program()
{
    if (m_ended)
        return;
    signal(SIGTERM); // mpirun takes its ranks along
    if (!ends(kPatience)) {
        signal(SIGKILL);
        ends(kPatience);
    }
}

void Program::signal(int number) const
{
    if (!m_ended && m_process > 0) // -1 is everybody
        ::kill(m_process, number);
}

bool Program::ends(std::chrono::milliseconds limit)
{
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!m_ended) {
        const pid_t ended = ::waitpid(m_process, &m_status, WNOHANG);
        m_ended = ended == m_process || (ended < 0 && errno != EINTR);
        if (!m_ended && std::chrono::steady_clock::now() > deadline)
            return false;
        if (!m_ended)
            pause(std::chrono::milliseconds(1));
    }
    return true;
}

int Program::exitCode() const
{
    return WIFEXITED(m_status) ? WEXITSTATUS(m_status) : 128 + WTERMSIG(m_status);
}

bool Program::endedBySignal(int number) const
{
    return WIFSIGNALED(m_status) && WTERMSIG(m_status) == number;
}

bool Program::couldNotMount() const
{
    return WIFEXITED(m_status) && WEXITSTATUS(m_status) == kCouldNotMount;
}

pid_t Program::rank(int number) const
{
    const std::string parent = std::to_string(m_process);
    const std::string mine = std::string("OMPI_COMM_WORLD_RANK=") + std::to_string(number) + '\0';
    pid_t found = -1;
    comesTrue([&] {
        std::ifstream children("/proc/" + parent + "/task/" + parent + "/children");
        for (pid_t child = -1; found < 0 && children >> child;)
            if (environmentOf(child).find(mine) != std::string::npos)
                found = child;
        return found >= 0;
    });
    return found;
}

Ran shardrun(const std::vector<std::string>& arguments, const Surroundings& surroundings)
{
    Program program(arguments, surroundings);
    EXPECT_TRUE(program.ends(kPatience)) << "still runs";
    Ran ran;
    if (program.ends(std::chrono::milliseconds(0)))
        ran = {program.exitCode(), surroundings.outputTo.empty() ? program.out() : "", program.err()};
    return ran;
}

void pause(std::chrono::milliseconds time)
{
    std::this_thread::sleep_for(time);
}

std::string shippedPlan(const std::string& name)
{
    return inSource("scenarios/validation/" + name + ".plan.json");
}

} // namespace shardwright::testing
