// In place of the MPI transport, in a build that found no MPI.

#include "core/diagnostics.hpp"
#include "executor/comm/transports.hpp"

namespace shardwright {

bool hasMpi()
{
    return false;
}

std::unique_ptr<Transport> makeMpiTransport(const TransportOptions& /*options*/)
{
    throw EnvironmentError("this build has no MPI: install libopenmpi-dev and build again");
}

} // namespace shardwright
