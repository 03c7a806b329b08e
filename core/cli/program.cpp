#include "core/cli/program.hpp"

#include <exception>
#include <new>
#include <stdexcept>

#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "core/diagnostics.hpp"
#include "core/plain_text.hpp"
#include "core/units.hpp"

namespace shardwright::cli {

int runProgram(const char* name, const std::function<ExitCode()>& body)
{
    prepareStreams();
    ExitCode code = ExitCode::Environment;
    try {
        code = body();
    } catch (const InputError& error) {
        printErr(withoutControlsButLines(error.what()) + '\n');
        code = ExitCode::BadInput;
    } catch (const NumberTooLarge& error) {
        printErr(fmt::format("the numbers of this input leave 64 bits: {}; expected smaller ones\n", error.what()));
        code = ExitCode::BadInput;
    } catch (const ClosedPipe&) { // nobody to tell
    } catch (const std::bad_alloc&) {
        printErr(fmt::format("{}: this machine has no more memory\n", name));
    } catch (const std::runtime_error& error) { // EnvironmentError, what a rank died of, what a library met
        printErr(fmt::format("{}: {}\n", name, error.what()));
    } catch (const std::exception& error) { // our own mistake
        printErr(fmt::format("{}: unexpected: {}\n", name, error.what()));
    }
    return static_cast<int>(code);
}

} // namespace shardwright::cli
