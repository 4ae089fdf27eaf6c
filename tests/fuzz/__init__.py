"""Every file of the formats, damaged and forged at random, and what commands then make of it: `make fuzz`; a short form is in the suite."""
