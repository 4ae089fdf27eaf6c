"""What tests of several rooms use: material, commands, servers, clusters."""
