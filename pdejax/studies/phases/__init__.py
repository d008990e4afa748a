"""Phase diagrams of tokens under attention, by sweeps that outgrow one machine."""
