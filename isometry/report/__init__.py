"""Reports of spectra: on the terminal, as pictures, as one HTML file. Loaded only where one is asked for."""
